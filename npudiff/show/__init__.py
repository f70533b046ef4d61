"""What people see: the console, pages, pictures."""
