"""How good the labels are: two teachers against each other, and a teacher against people."""
