# SPDX-License-Identifier: Apache-2.0
"""`python -m nvfp4_moe doctor env [MODEL_DIR]`, `python -m nvfp4_moe --version`."""

import argparse
import sys

from . import __version__


class Version(argparse.Action):
    """Asks the library only where it is asked: loading it takes torch, and seconds."""

    def __init__(self, option_strings, dest, **_):
        super().__init__(option_strings, dest, nargs=0, help="the release, and what the library was built with")

    def __call__(self, parser, *_):
        """Print and leave."""
        from .doctor.env import built_in

        print(f"nvfp4-moe {__version__} ({built_in()})")  # as the program `nvfp4-moe --version`
        parser.exit()


def main() -> int:
    """Exit status: 0 the plugin would serve, 1 it would not, or MODEL_DIR is no checkpoint, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m nvfp4_moe")
    parser.add_argument("--version", action=Version)
    doctor = parser.add_subparsers(dest="tool", required=True).add_parser("doctor", help="find out what is wrong")
    command = doctor.add_subparsers(dest="command", required=True)
    env = command.add_parser("env", help="what is installed, and which backend each layer of a model would get")
    env.add_argument("model", nargs="?", metavar="MODEL_DIR", help="directory with config.json and *.safetensors")
    env.add_argument("--device", choices=("cpu", "cuda"), help="device to ask about; default: the one torch finds")
    env.add_argument("--moe-backend", default="auto", help="as given to vllm serve")
    env.add_argument("--linear-backend", default="auto", help="as given to vllm serve")
    arguments = parser.parse_args()

    from .doctor.env import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
