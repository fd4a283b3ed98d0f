"""`doctor`: what this machine can do."""
import argparse


def fill(parser: argparse.ArgumentParser) -> None:
    """Nothing yet."""
    parser.set_defaults(action=lambda chosen: 0)
