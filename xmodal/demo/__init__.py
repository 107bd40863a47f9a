"""The whole way on the emoji set that ships with the project."""
