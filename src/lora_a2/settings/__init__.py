"""What options are made of: groups, the marks of a field, errors in one line."""
