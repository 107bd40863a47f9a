"""`python -m xmodal.cli`, as the console command."""

from xmodal.cli import command

command()
