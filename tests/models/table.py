"""Which technique works on which model: outcomes of ordinary models, one page a machine.

    python -m tests.models.table --results results

Each outcome is kept, when it is there, in results/models/<machine>/outcomes.jsonl: the same command
measures what is missing. `--again` forgets a model's or a technique's outcomes first. Torch's
compiler runs with the backend `aot_eager` here, which traces and breaks as inductor does and
generates no kernels: a minute a model less.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from tabulate import tabulate

from stepbench.measuring.measure import measure
from stepbench.measuring.preload import preload
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import this_machine
from stepbench.records.case import Case
from stepbench.records.machine import summary
from stepbench.selfcheck.journal import add, opened, read
from stepbench.training.libraries import without_others
from stepbench.training.techniques import compiling, parse, plan_of
from tests.models.explained import EXPLAINED

SETTINGS = Settings(rounds=1, extra_rounds=0, max_steps=6, min_steps=6, deadline_s=90.0)
BACKEND = "aot_eager"
NOT_JUDGED = "loss not judged"

TECHNIQUES = (
    "bf16", "accum2", "ckpt1", "adamw-fused", "ddp", "zero2", "fsdp2", "lora8", "compile",
)  # fmt: skip
MODELS = {
    "LSTM": "language:lstm",
    "nanoGPT": "language:nanogpt",
    "Hugging Face GPT-2": "language:gpt2",
    "GPT-2, groups by name": "language:gpt2_in_groups",
    "Hugging Face T5": "language:t5",
    "mixture of experts": "language:mixture_of_experts",
    "selective recurrence": "language:selective_recurrence",
    "uneven padding": "language:uneven_padding",
    "two towers, contrastive": "language:contrastive",
    "two views, batch not said": "language:redundancy_reduction",
    "vision transformer": "vision:vision_transformer",
    "ResNet-18": "vision:resnet",
    "diffusion U-Net": "vision:diffusion",
    "images in bytes": "vision:quantized_inputs",
    "partly frozen": "frozen:partly_frozen",
    "a block left out": "frozen:one_left_out",
    "never-used parameters": "frozen:never_used",
    "branch on data": "frozen:branching",
    "sparse embeddings": "frozen:sparse",
    "custom autograd function": "gradients:custom_function",
    "two losses": "gradients:two_losses",
    "gradient penalty": "gradients:gradient_penalty",
    "weight norm": "gradients:weight_norm",
    "spectral norm": "gradients:spectral_norm",
    "complex weights": "gradients:complex_weights",
    "physics-informed, float64": "gradients:physics_informed",
    "hypernetwork": "gradients:hypernetwork",
    "tied autoencoder": "gradients:tied_autoencoder",
    "buffers moved in forward": "state:buffers_in_forward",
    "codebook": "state:codebook",
    "variational autoencoder": "state:variational",
    "stochastic depth": "state:stochastic_depth",
    "graph network": "state:graph_network",
    "Lightning module": "state:lightning",
    "rates by layer": "state:in_groups",
}


def outcome_of(model, technique):
    """Measure one case: its outcome."""
    combination = parse(technique)
    ranks = 2 if plan_of(combination).distributed else 1
    workload = f"tests.models.{MODELS[model]}"
    case = Case(workload=workload, combination=combination, ranks=ranks)
    return measure(case, SETTINGS, this_machine()).outcome


def header(file):
    """What a journal was measured on: machine, torch, and the measurement's version."""
    return json.loads(file.read_text(encoding="utf-8").partition("\n")[0])


def outcomes(file):
    """{(model, technique): (kind, reason)} of a journal."""
    told = {(one["model"], one["technique"]): one["outcome"] for one in read(file)}
    return {case: (one["kind"], one.get("reason")) for case, one in told.items()}


def word(kind, reason):
    """What stands in a cell."""
    return "ok, not judged" if kind == "ok" and NOT_JUDGED in (reason or "") else kind


def page(file):
    """The table in Markdown, and below it what is not ok, by reason."""
    found, known = outcomes(file), header(file)
    rows = [
        [model, *(word(*found[model, one]) if (model, one) in found else "" for one in TECHNIQUES)]
        for model in MODELS
    ]
    table = tabulate(rows, headers=["model", *TECHNIQUES], tablefmt="github")
    counted = Counter(word(*one) for one in found.values())
    counts = "; ".join(f"{number} {kind}" for kind, number in sorted(counted.items()))
    return PAGE.format(
        machine=summary(known["machine"]),
        torch=known["torch"],
        backend=BACKEND,
        models=len(MODELS),
        cases=len(found),
        counts=counts,
        table=table,
        reasons="\n".join(_reasons(found)),
    )


PAGE = """# Ordinary models under nine techniques

{machine}, torch {torch}.

One round of six timed steps a case; ddp, zero2 and fsdp2 on two ranks; torch.compile with the
backend {backend}. `python -m tests.models.table` measures what is missing.

{models} models, {cases} cases: {counts}. *Not judged*: the technique is other
mathematics than the baseline on this model, so its loss is reported and held against nothing; that
it was active is judged all the same.

{table}

## What is not ok, and why

{reasons}
"""


def _reasons(found):
    """Lines of a list: every outcome that is not ok, cases with equal reasons together."""
    together = defaultdict(list)
    for (model, technique), (kind, reason) in found.items():
        if kind != "ok":
            together[kind, technique, reason].append(model)
    for (kind, technique, reason), models in sorted(together.items()):
        yield f"- **{kind}**, {technique} on {', '.join(models)}: {reason}"
        explained = [EXPLAINED[one, technique] for one in models if (one, technique) in EXPLAINED]
        for shown in dict.fromkeys(explained):
            yield f"  Shown by a plain loop: {' '.join(shown.__doc__.split())}"


def main(arguments=None):
    """Measure what has no outcome yet, keep it, and write the page; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--again", action="append", default=[], choices=[*MODELS, *TECHNIQUES], metavar="NAME"
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    asked = parser.parse_args(arguments)
    machine = this_machine()
    file = opened(asked.results / "models" / machine["name"] / "outcomes.jsonl", machine)
    compiling.BACKEND = BACKEND
    _load_slow_libraries()
    _forget(file, set(asked.again))
    known = outcomes(file)
    for model in MODELS:
        for technique in TECHNIQUES:
            if (model, technique) in known:
                continue
            began = time.monotonic()
            told = outcome_of(model, technique)
            kept = {"kind": told.kind, "phase": told.phase, "reason": told.reason}
            add(file, {"model": model, "technique": technique, "outcome": kept})
            print(f"{model}, {technique}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    file.with_name("README.md").write_text(page(file), encoding="utf-8")
    return 0


def _forget(file, named):
    """Leave out the lines of models and techniques that are named."""
    first, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    told = [(json.loads(line), line) for line in lines]
    kept = [line for one, line in told if not named & {one["model"], one["technique"]}]
    file.write_text("".join([first, *kept]), encoding="utf-8")


def _load_slow_libraries():
    """Before anything is forked: seconds in each process otherwise."""
    preload(["peft"])
    with without_others():
        from transformers import GPT2LMHeadModel, T5ForConditionalGeneration  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
