# SPDX-License-Identifier: Apache-2.0
"""The plugin's environment variables: a bad value stops the start, and a name that nobody reads is said."""

import pytest

from nvfp4_moe.plugin import settings

BAD = [
    ("NVFP4_MOE_MODE", "fp4", "it must be one of default, bf16, nvfp4, fp8. Unset it for default"),
    ("NVFP4_MOE_SCALES", "Static", "it must be one of static, calibrated, dynamic"),
    ("NVFP4_MOE_CALIBRATION_TOKENS", "4k", "it must be a number, 1 or more. Unset it for 4096"),
    ("NVFP4_MOE_CALIBRATION_TOKENS", "0", "it must be a number, 1 or more"),
    ("NVFP4_MOE_FP8_MAX_ERROR", "3%", "it must be a number, 0 to 1. Unset it to round no weights"),
    ("NVFP4_MOE_FP8_MAX_ERROR", "nan", "it must be a number, 0 to 1"),
    ("NVFP4_MOE_FP8_MAX_ERROR", "0.03", "NVFP4_MOE_MODE must be fp8 then, and is 'default'. Unset one of them"),
]


@pytest.mark.parametrize(("name", "value", "rule"), BAD, ids=lambda text: text[:20])
def test_a_bad_value_is_refused_at_start(monkeypatch, name, value, rule):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} is '{value}'; {rule}"):
        settings.check()


def test_a_misspelt_name_is_said_with_the_right_one(monkeypatch):
    monkeypatch.setenv("NVFP4_MOE_CUDA_HOME", "/usr")  # the build's
    monkeypatch.setenv("NVFP4_MOE_MODE", "bf16")
    assert settings.check() == []
    monkeypatch.setenv("NVFP4_MOE_SCALE_FILE", "scales.json")
    monkeypatch.setenv("NVFP4_MOE_XYZ", "1")
    close, unlike = settings.check()
    assert close == "NVFP4_MOE_SCALE_FILE is set, and is no setting. Did you mean NVFP4_MOE_SCALES_FILE?"
    assert unlike.startswith("NVFP4_MOE_XYZ is set, and is no setting. There are NVFP4_MOE_DISABLE, ")
