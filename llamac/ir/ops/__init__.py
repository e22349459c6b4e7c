"""The ops, one family a file: signature, type rule and numpy meaning."""
