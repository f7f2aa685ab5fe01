"""Deep ensembles: independent members in one module, and what the other kinds of ensembles share with them."""
