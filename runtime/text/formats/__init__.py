"""The prompt formats of every generation of the family, for artifacts whose checkpoint carried no chat template."""
