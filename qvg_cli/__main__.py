"""`python -m qvg_cli` is `qvg`."""

from qvg_cli.main import program

program()
