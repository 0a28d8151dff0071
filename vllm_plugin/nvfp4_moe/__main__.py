# SPDX-License-Identifier: Apache-2.0
"""`nvfp4-moe`, or `python -m nvfp4_moe`: look into a checkpoint, or find out what is wrong."""

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
    """Exit status: 0 healthy, 1 a finding (the plugin would not serve, a directory is no checkpoint), 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="nvfp4-moe", description=__doc__)
    parser.add_argument("--version", action=Version)
    tools = parser.add_subparsers(dest="tool", required=True)
    add_inspect(tools.add_parser("inspect", help="the MoE layers of a checkpoint, with warnings"))
    add_doctor(tools.add_parser("doctor", help="find out what is wrong"))
    arguments = parser.parse_args()
    return arguments.run(arguments)


def add_inspect(inspect: argparse.ArgumentParser) -> None:
    """What the reader found, every scale checked."""
    inspect.add_argument("model", metavar="MODEL_DIR", help="directory with config.json and *.safetensors")
    inspect.add_argument("--json", action="store_true", help="JSON instead of a table")
    inspect.add_argument("--prefix", default="", help="of the tensors to look at: one tower of a model with several")
    inspect.set_defaults(run=run_inspect)


def run_inspect(arguments: argparse.Namespace) -> int:
    """Print the report; 1 with a sentence if the directory is no checkpoint, or the package was not built."""
    try:
        from . import Checkpoint

        print(Checkpoint(arguments.model, prefix=arguments.prefix).inspect(as_json=arguments.json))
    except (ImportError, RuntimeError) as error:
        print(f"{arguments.model}: {error}", file=sys.stderr)
        return 1
    return 0


def add_doctor(doctor: argparse.ArgumentParser) -> None:
    """One command a question."""
    command = doctor.add_subparsers(dest="command", required=True)
    env = command.add_parser("env", help="what is installed, and which backend each layer of a model would get")
    env.add_argument("model", nargs="?", metavar="MODEL_DIR", help="directory with config.json and *.safetensors")
    env.add_argument("--device", choices=("cpu", "cuda"), help="device to ask about; default: the one torch finds")
    env.add_argument("--moe-backend", default="auto", help="as given to vllm serve")
    env.add_argument("--linear-backend", default="auto", help="as given to vllm serve")
    env.set_defaults(run=run_doctor)
    counters = command.add_parser("counters", help="what the kernels of a served model saw")
    counters.add_argument("url", metavar="URL", help="of the server, as http://localhost:8000")
    counters.add_argument("--reset", action="store_true", help="set them to zero afterwards")
    counters.add_argument("--json", action="store_true", help="JSON instead of a line for each worker")
    counters.set_defaults(run=run_doctor)
    checkpoint = question(command, "checkpoint", "scales, norms, config and files that cannot be right")
    checkpoint.add_argument(
        "--quick", action="store_true", help="headers and single scales only; no block scale is read"
    )
    prompt = question(command, "prompt", "is a prompt the one that the model was trained on")
    prompt.add_argument("--messages", metavar="FILE", help="JSON list of messages with role and content")
    prompt.add_argument("--user", metavar="TEXT", help="the same for one message of the user")
    given = prompt.add_mutually_exclusive_group()
    given.add_argument("--ids", help="token ids of your prompt, as 0,128803, or a file of them")
    given.add_argument("--text", help="your prompt as text, or a file of it")
    prompt.add_argument("--trust", action="store_true", help="also RUN the encoder in encoding/ of the checkpoint")
    stop = question(command, "stop", "where answers end, and whether a bad one went past its end")
    stop.add_argument("--output-ids", metavar="FILE", help="token ids of a bad answer")
    serving = command.add_parser("command", help="is a `vllm serve ...` right for its model; nothing is run")
    serving.add_argument("--model-dir", metavar="DIR", help="of the model, where the command names one on a hub")
    serving.add_argument("--json", action="store_true", help="JSON instead of text")
    serving.add_argument("words", nargs=argparse.REMAINDER, metavar="-- [NAME=VALUE] vllm serve MODEL ...")
    serving.set_defaults(run=run_doctor)
    serve = command.add_parser("serve", help="experiments on a running server of any engine")
    serve.add_argument("url", metavar="URL", help="as http://localhost:8000; OPENAI_API_KEY is sent if it is set")
    serve.add_argument("--model-dir", metavar="DIR", help="of the served model, for its canonical prompt")
    serve.add_argument("--skip", action="append", metavar="NAME", help="leave an experiment out; may be repeated")
    serve.add_argument("--json", action="store_true", help="JSON instead of text")
    serve.set_defaults(run=run_doctor)
    layers = question(command, "layers", "the first layer that is wrong, in real vLLM, down to the expert")
    layers.add_argument("--options", default="{}", help="JSON: more arguments of vllm.LLM")
    layers.add_argument("--ids", help="token ids of a prompt, or a file of them; default: 150 of all sorts")
    layers.add_argument("--tokens", type=int, default=8, help="tokens of it that the float64 reference computes")
    layers.add_argument("--save", metavar="FILE", help="outputs of all boundaries, for --against elsewhere")
    layers.add_argument("--against", metavar="FILE", help="compare with a saved run")
    layers.add_argument("--threshold", type=float, default=0.99, help="least cosine with it")
    layers.add_argument(
        "--picture", metavar="FILE", help="sizes and errors over layers, as .svg; as .png with matplotlib"
    )
    norm = question(command, "norm", "are norms there and applied, in real vLLM")
    norm.add_argument("--options", default="{}", help="JSON: more arguments of vllm.LLM")
    attention = question(command, "attention", "does attention see what the config says, in real vLLM")
    attention.add_argument("--options", default="{}", help="JSON: more arguments of vllm.LLM")
    attention.add_argument("--skip", action="append", metavar="NAME", help="leave an experiment out; may be repeated")
    gpu = command.add_parser("gpu", help="first run on a new card, on a layer that is made here")
    gpu.add_argument("--device", choices=("cpu", "cuda", "cuda-portable"), help="default: the GPU")
    gpu.add_argument("--out", metavar="FILE", help="the report, to send back")
    gpu.add_argument("--inside-sanitizer", action="store_true", help=argparse.SUPPRESS)
    gpu.add_argument("--json", action="store_true", help="JSON instead of text")
    gpu.set_defaults(run=run_doctor)
    everything = question(command, "all", "every command that applies, cheapest first", "MODEL_DIR|URL")
    everything.add_argument("--keep-going", action="store_true", help="do not stop at the first fault")
    everything.add_argument("--offline", action="store_true", help="do not load the model")
    everything.add_argument("--options", default="{}", help="JSON: more arguments of vllm.LLM")
    everything.add_argument(
        "--picture", metavar="FILE", help="sizes and errors over layers, as .svg; as .png with matplotlib"
    )


def question(
    command: argparse._SubParsersAction, name: str, text: str, subject: str = "MODEL_DIR"
) -> argparse.ArgumentParser:
    """A command with a subject and --json."""
    parser = command.add_parser(name, help=text)
    parser.add_argument("model", metavar=subject)
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    parser.set_defaults(run=run_doctor)
    return parser


def run_doctor(arguments: argparse.Namespace) -> int:
    """A command is the module of its name, imported when it is asked for."""
    from importlib import import_module

    from .doctor.finding import WRONG_USE, WrongUse

    try:
        return import_module(f".doctor.{arguments.command}", __package__).run(arguments)
    except WrongUse as error:
        print(error, file=sys.stderr)
        return WRONG_USE


if __name__ == "__main__":
    sys.exit(main())
