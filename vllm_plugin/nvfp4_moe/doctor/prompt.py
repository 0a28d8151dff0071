# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  markers are spelled so
"""`doctor prompt DIR`: is the prompt the one that the model was trained on? Only the tokenizer's files are read."""

import json
from pathlib import Path

from . import canonical, contracts
from .canonical import Variant
from .directory import Directory
from .finding import Report, WrongUse, some
from .prompt_diff import diff, explain, nearest
from .tokenizer import Tokenizer, report_of

# What the two forms of a model are compared on, where nobody gives a conversation.
CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Who are you?\n"},
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Bye"},
    ],
]
FAMILY = ("deepseek_v4", "deepseek_v41")


def run(arguments) -> int:
    """Print what differs; 1 if anything does."""
    return check(arguments).finish(arguments.json)


def check(arguments) -> Report:
    """Of a directory, and of a prompt if one is given."""

    def of(report: Report, directory: Directory, tokenizer: Tokenizer) -> None:
        messages = conversation(arguments)
        given = prompt_ids(arguments, tokenizer)
        if given is not None and messages is None:
            raise WrongUse(
                "--ids and --text need the conversation that they are of. Add --messages FILE or --user TEXT."
            )
        examine(report, directory, tokenizer)
        variants = variants_of(report, directory, tokenizer, messages or CONVERSATIONS[0], arguments.trust)
        if given is not None:
            compare(report, given, variants, tokenizer)

    return report_of("prompt", arguments.model, of)


def conversation(arguments) -> list[dict] | None:
    """Of --messages or --user; None if neither was given."""
    if arguments.user is not None:
        return [{"role": "user", "content": arguments.user}]
    if arguments.messages is None:
        return None
    messages = json.loads(file_text(arguments.messages, "--messages"))
    messages = messages.get("messages") if isinstance(messages, dict) else messages
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages) or not messages:
        raise WrongUse(f"{arguments.messages} must be a JSON list of messages, each with role and content.")
    return messages


def file_text(name: str, option: str) -> str:
    """Of a file that the user named."""
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"{option} {name} cannot be read ({error}).") from None


def prompt_ids(arguments, tokenizer: Tokenizer) -> list[int] | None:
    """Of --ids (numbers, or a file of them) or of --text as an engine's completions would encode it."""
    if arguments.ids is not None:
        return numbers(arguments.ids, "--ids")
    if arguments.text is not None:
        text = file_text(arguments.text, "--text") if Path(arguments.text).is_file() else arguments.text
        return tokenizer.encode(text, add_special_tokens=True)
    return None


def numbers(given: str, option: str) -> list[int]:
    """`1,2,3`, or the name of a file that holds such, or JSON."""
    text = given if set(given) <= set("0123456789, -[]") else file_text(given, option)
    try:
        return [int(number) for number in text.replace("[", " ").replace("]", " ").replace(",", " ").split()]
    except ValueError:
        raise WrongUse(f"{option} must be token ids, as 0,128803,19923, or a file of them.") from None


def examine(report: Report, directory: Directory, tokenizer: Tokenizer) -> None:
    """The tokenizer and the template by themselves."""
    vocabulary = directory.config.get("vocab_size")
    report.fact("tokenizer", f"{tokenizer.size} tokens, {len(tokenizer.added)} of them special or added")
    largest = max(tokenizer.added.values(), default=0)
    if isinstance(vocabulary, int) and largest >= vocabulary:
        report.fault(
            "id-outside-vocabulary",
            f"the largest added token's id is {largest}; config.json says vocab_size {vocabulary}",
            "its embedding is not there: the engine fails, or reads another row.",
            "Use the tokenizer that belongs to these weights.",
        )
    if directory.config.get("model_type") in FAMILY:
        markers(report, tokenizer, vocabulary)


def markers(report: Report, tokenizer: Tokenizer, vocabulary: object) -> None:
    """DeepSeek-V4's special tokens; a small model with a tokenizer of its own has none of them, and is none of this."""
    split = [f"{text} is {len(ids)} ids" for text in contracts.SPECIAL if len(ids := tokenizer.encode(text)) != 1]
    if not is_deepseeks(tokenizer, vocabulary):
        report.note(
            "foreign-tokenizer",
            f"0 of {len(contracts.SPECIAL)} special tokens of DeepSeek-V4 are tokens here",
            "the tokenizer is another model's; its template is not compared with DeepSeek-V4's encoding.",
            "Nothing to do if that is meant.",
        )
    elif split:
        report.fault(
            "special-token-missing",
            f"{some(split)}; each is one id in DeepSeek-V4's tokenizer",
            "markers reach the model as letters.",
            "Copy tokenizer.json and tokenizer_config.json of the model.",
        )


def is_deepseeks(tokenizer: Tokenizer, vocabulary: object) -> bool:
    """Has it any of the markers, or the size of DeepSeek's vocabulary?"""
    has_any = any(tokenizer.id_of(text) is not None for text in contracts.SPECIAL if "｜" in text)
    return has_any or (isinstance(vocabulary, int) and vocabulary > max(contracts.SPECIAL.values()))


def variants_of(
    report: Report, directory: Directory, tokenizer: Tokenizer, messages: list[dict], trust: bool
) -> list[Variant]:
    """Every canonical prompt of a conversation, and whether the model's sources of them agree."""
    template = canonical.chat_template(directory, tokenizer)
    contract = canonical.contract_of(directory)
    names = [contract] if contract else ["preview", "official"]
    if directory.config.get("model_type") not in FAMILY and contract is None:
        names = []
    report.fact("chat template", f"{len(template)} characters" if template else "none")
    if names:
        report.fact("encoding", contract or "DeepSeek-V4 without its encoding/ folder: preview or official")
    variants: list[Variant] = []
    if template:
        rendered = canonical.by_template(template, tokenizer, messages)
        if isinstance(rendered, str) and "No module named 'jinja2'" in rendered:
            report.note(
                "template-not-rendered", rendered, "the chat template was not compared.", "Run pip install jinja2."
            )
        elif isinstance(rendered, str):
            report.fault(
                "template-fails",
                f"the chat template does not render: {rendered}",
                "no chat reaches the model.",
                "Copy the model's own template.",
            )
        else:
            variants += rendered
            template_faults(report, rendered, tokenizer, messages)
    try:
        for name in names:
            variants += canonical.by_contract(name, messages)
    except ValueError as error:
        report.note(
            "encoding-not-compared", str(error), "DeepSeek-V4's encoding of this conversation is not written here.", ""
        )
    if trust and directory.config.get("model_type") in FAMILY:
        variants += trusted(report, directory, messages, variants)
    belongs = is_deepseeks(tokenizer, directory.config.get("vocab_size"))
    if names and belongs and any(variant.source == "chat template" for variant in variants):
        agreement(report, template, tokenizer, names)
    if contract:
        engine(report, contract)
    if not variants:
        raise WrongUse("the directory has neither a chat template nor DeepSeek-V4's encoding; nothing is canonical.")
    for variant in variants:
        report.fact(variant.name, f"{len(tokenizer.encode(variant.text))} ids: {tokenizer.encode(variant.text)[:16]}")
    return variants


def template_faults(report: Report, rendered: list[Variant], tokenizer: Tokenizer, messages: list[dict]) -> None:
    """A template's own: a doubled BOS where the engine adds one, and a last question that it drops."""
    bos = tokenizer.named("bos_token")
    if bos and tokenizer.adds_bos() and rendered[0].text.startswith(bos):
        report.note(
            "bos-by-both",
            f"the template writes {bos}, and the tokenizer adds 1 more to plain text",
            "who sends the rendered text to /v1/completions gets it twice.",
            "Send messages, or add_special_tokens=false with the text.",
        )
    last = messages[-1].get("content")
    if isinstance(last, str) and last.strip() not in rendered[0].text:
        report.fault(
            "template-drops-text",
            f"0 of 1 last message is in the rendered prompt: {last[:60]!r} is missing",
            "the model never sees the question.",
            "Copy the model's own chat template.",
        )


def trusted(report: Report, directory: Directory, messages: list[dict], known: list[Variant]) -> list[Variant]:
    """The checkpoint's encoder, run because the user trusts it; it must be one that we know."""
    said = canonical.by_encoder(directory, messages)
    if isinstance(said, str):
        report.note("encoder-fails", f"the checkpoint's encoder gave 0 prompts: {said}", "it was not compared.", "")
        return []
    strange = [variant for variant in said if variant.text not in {each.text for each in known}]
    if strange:
        report.note(
            "encoder-unknown",
            f"{len(strange)} of {len(said)} prompts of the checkpoint's encoder are none of ours ({strange[0].mode})",
            "the checkpoint has a contract that this command does not know.",
            "Trust the checkpoint's.",
        )
    return strange


def agreement(report: Report, template: str, tokenizer: Tokenizer, contract_names: list[str]) -> None:
    """Both forms of one model, on the canonical conversations: a prompt of the template must be one of the encoding."""
    for messages in CONVERSATIONS:
        rendered = canonical.by_template(template, tokenizer, messages)
        known = [variant for name in contract_names for variant in canonical.by_contract(name, messages)]
        if isinstance(rendered, str):
            continue
        for variant in rendered:
            if variant.text in {each.text for each in known}:
                continue
            best = known[nearest(list(variant.text.encode()), [list(each.text.encode()) for each in known])]
            at = next(
                (i for i, (a, b) in enumerate(zip(variant.text, best.text)) if a != b),
                min(len(variant.text), len(best.text)),
            )
            report.fault(
                "template-is-not-the-encoding",
                f"on a conversation of {len(messages)} messages the chat template ({variant.mode}) has "
                f"{variant.text[at : at + 30]!r} at character {at}; the encoding ({best.mode}) has "
                f"{best.text[at : at + 30]!r}",
                "the template is not the one that this model was trained with.",
                "Serve with deepseek_v4 for --tokenizer-mode, --reasoning-parser and --tool-call-parser.",
            )
            return


def engine(report: Report, contract: str) -> None:
    """vLLM has one contract for all checkpoints; it may be another one's."""
    found = canonical.vllm_contract(contract)
    if found and found != contract:
        efforts = {name: contracts.EFFORTS[name].get("high", "")[:34] or "nothing" for name in (contract, found)}
        report.note(
            "other-contract-in-vllm",
            f"effort high puts {efforts[contract]!r} first by this checkpoint ({contract}); the vLLM that is installed "
            f"here ({found}) puts {efforts[found]!r}",
            "the model is asked for another effort than the one that is meant.",
            "Ask for the effort whose prefix is meant, or serve with the vLLM of this checkpoint's time.",
        )


def compare(report: Report, given: list[int], variants: list[Variant], tokenizer: Tokenizer) -> None:
    """The user's prompt beside the canonical ones: equal to one, or different from the nearest."""
    encoded = [tokenizer.encode(variant.text) for variant in variants]
    equal = [variant.name for variant, ids in zip(variants, encoded) if ids == given]
    if equal:
        report.fact("the prompt", f"{len(given)} ids, equal to: {some(equal)}")
        return
    best = nearest(tokenizer.encode(tokenizer.decode(given)), encoded)
    report.fact("the prompt", f"{len(given)} ids, nearest to: {variants[best].name} ({len(encoded[best])} ids)")
    for number, line in enumerate(diff(given, encoded[best], tokenizer)):
        report.fact("diff" if number == 0 else "", line)
    explain(report, given, encoded[best], tokenizer, variants[best].name)
