"""BatchEnsemble: members that share each weight, up to a factor of rank one."""
