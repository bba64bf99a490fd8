"""The program `qvg`, also as `python -m qvg_cli`."""

import sys


def run() -> None:
    """Do what the command line says; Ctrl-C before a command has begun ends it without a traceback."""
    try:
        from qvg_cli.main import program

        program()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
