# SPDX-License-Identifier: Apache-2.0
"""`doctor checkpoint`: a healthy model has no fault, each planted one is found by name, and hostile files are read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import doctor_models
from doctor_models import NOTES, PLANTED, healthy, write, write_indexed
from nvfp4_moe.doctor.checkpoint import examine
from nvfp4_moe.doctor.checkpoint_scales import least_amax
from nvfp4_moe.doctor.directory import Directory

ROOT = Path(__file__).parents[1]


def faults(path: Path) -> set[str]:
    return {finding.name for finding in examine(str(path)).faults}


def test_a_healthy_model_has_no_finding(tmp_path):
    for directory in (write(tmp_path / "one", *healthy()), write_indexed(tmp_path / "two", *healthy())):
        report = examine(str(directory))
        assert report.findings == []
        text = "\n".join(report.lines())
        assert "4 x layers.*.ffn.experts  nvfp4, by nvfp4_moe: activations bf16 without FP4 tensor cores" in text
        assert text.endswith("no fault found, 0 notes")


@pytest.mark.parametrize(("name", "plant", "finding"), PLANTED, ids=[name for name, *_ in PLANTED])
def test_a_planted_fault_is_found_by_name(tmp_path, name, plant, finding):
    tensors, config = healthy()
    plant(tensors, config)
    assert finding in faults(write(tmp_path, tensors, config))


@pytest.mark.parametrize(("name", "plant", "finding"), NOTES, ids=[name for name, *_ in NOTES])
def test_what_is_no_fault_is_a_note(tmp_path, name, plant, finding):
    tensors, config = healthy()
    plant(tensors, config)
    report = examine(str(write(tmp_path, tensors, config)))
    assert {found.name for found in report.findings} == {finding}
    assert report.status == 0


def test_the_outlier_is_named_with_its_quotient(tmp_path):
    tensors, config = healthy()
    doctor_models.set_scale("layers.2.attn.wq_a", 1e-3)(tensors, config)
    (found,) = [f for f in examine(str(write(tmp_path, tensors, config))).faults if f.name == "input-scale-outlier"]
    assert found.seen.startswith("the input scale of layers.2.attn.wq_a is 2.4e-06; the median over 4 layers is 0.0021")
    assert "875 times smaller" in found.seen


def test_the_least_amax_behind_a_norm(tmp_path):
    weights = torch.tensor([0.5, 2.0, 1.0, -4.0])
    save_file({"n.weight": weights}, tmp_path / "model.safetensors")
    floor = least_amax(Directory(str(tmp_path)), "n.weight")
    rows = torch.randn(20000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = rows / rows.square().mean(1, keepdim=True).sqrt() * weights
    assert floor <= rows.abs().amax(1).min() < 1.1 * floor  # no row is below, and the bound is tight


def test_files_that_do_not_belong_together(tmp_path):
    tensors, config = healthy()
    listed = write_indexed(tmp_path / "unlisted", tensors, config)
    index = json.loads((listed / "model.safetensors.index.json").read_text())
    del index["weight_map"]["norm.weight"]
    (listed / "model.safetensors.index.json").write_text(json.dumps(index))
    assert faults(listed) == {"unlisted-tensor"}

    twice = write_indexed(tmp_path / "twice", tensors, config)
    _, second = sorted(twice.glob("model-*.safetensors"))
    save_file({name: t for name, t in tensors.items() if name > "layers.1" or name == "embed.weight"}, second)
    assert "reader" in faults(twice)

    stray = write_indexed(tmp_path / "stray", tensors, config)
    save_file({"norm.weight": tensors["norm.weight"]}, stray / "consolidated.safetensors")
    report = examine(str(stray))
    assert report.status == 0
    assert "consolidated.safetensors" in report.findings[0].seen


HOSTILE = {
    "config.json": ['{"model_type": "\x1b[2J"}', "[" * 100000, "null", "\xff"],
    "model.safetensors.index.json": ['{"weight_map": {"a": "../../secret.safetensors"}}', '{"weight_map": 3}', "{"],
}


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in HOSTILE.items() for text in texts])
def test_hostile_files_get_a_sentence_and_never_a_traceback(tmp_path, file, text):
    write(tmp_path, *healthy())
    (tmp_path / file).write_bytes(text.encode("latin-1"))
    command = [sys.executable, "-m", "nvfp4_moe", "doctor", "checkpoint", str(tmp_path), "--json"]
    if text == '{"model_type": "\x1b[2J"}':  # one process shows what all print
        done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "vllm_plugin")})
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stdout
        assert json.loads(done.stdout)["command"] == "checkpoint"
        assert done.returncode in (0, 1)
    else:
        assert "Traceback" not in "\n".join(examine(str(tmp_path)).lines())


def test_what_is_no_directory_is_wrong_use():
    command = [sys.executable, "-m", "nvfp4_moe", "doctor", "checkpoint", "nvidia/Some-Model"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "vllm_plugin")})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nvidia/Some-Model is no directory; this command reads a model's.")


def test_a_config_of_junk_is_no_crash(tmp_path):
    tensors, config = healthy()
    write(tmp_path, tensors, config)
    keys = [*config, "rope_scaling", "num_nextn_predict_layers", "text_config", "vocab_size"]
    for key in keys:
        for junk in (None, [], {}, [[]], "x", -1, 1e308, True):
            (tmp_path / "config.json").write_text(json.dumps(config | {key: junk}))
            assert isinstance(examine(str(tmp_path), blocks=False).status, int), (key, junk)
