"""Network Fission Ensembles: members that each own a part of one network's weights."""
