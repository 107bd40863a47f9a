"""Makes the tables of scaling.md anew, from xmodal/training/scaling.py: python docs/write_scaling.py."""

from pathlib import Path

from xmodal.training.scaling import with_tables

PAGE = Path(__file__).parent / "scaling.md"

if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
