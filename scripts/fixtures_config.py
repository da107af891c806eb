"""Writes tests/fixtures/config_defaults.json: the fields that the config classes of transformers set
and that our fixtures do not have, with their defaults. Needs `pip install transformers`; torch is not
needed.
"""

import json
import pathlib
import re

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ROOT = pathlib.Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"


def families():
    """The model types of each family, under the name of its fixture."""
    for path in sorted((ROOT / "core/src/families/text").glob("**/*.rs")):
        found = re.search(r"model_types:\s*&\[(.*?)\]", path.read_text(), re.DOTALL)
        if found:
            name = path.parent.name if path.name == "mod.rs" else path.stem
            yield name, re.findall(r'"([^"]+)"', found[1])


def plain(config):
    return json.loads(config.to_json_string(use_diff=False))


def missing(defaults, config):
    """The defaults that a config does not say: single values, kinds of layers, plain rotary fields."""
    common = plain(PretrainedConfig())
    defaults, config = defaults.get("text_config", defaults), config.get("text_config", config)
    for field, value in sorted(defaults.items()):
        if field in config or field in common or value is None:
            continue
        if field == "layer_types":
            yield field, sorted(set(value))[-1]
        elif field == "rope_parameters" and "full_attention" not in value:
            yield field, value
        elif not isinstance(value, (dict, list)):
            yield field, value


def main():
    lines = {}
    for family, model_types in families():
        fixture = json.loads((FIXTURES / "families" / f"{family}.json").read_text())
        configs = [case["config"] for case in fixture["cases"]]
        for model_type in model_types:
            if model_type not in CONFIG_MAPPING:
                continue
            same = [config for config in configs if config["model_type"] == model_type]
            defaults = plain(CONFIG_MAPPING[model_type]())
            fields = dict(missing(defaults, (same or configs)[0]))
            lines[model_type] = f"  {json.dumps(model_type)}: {json.dumps(fields)}"
    text = ",\n".join(lines[model_type] for model_type in sorted(lines))
    (FIXTURES / "config_defaults.json").write_text(f"{{\n{text}\n}}\n")


if __name__ == "__main__":
    main()
