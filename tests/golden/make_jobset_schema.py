"""Makes jobset_schema.json: what JobSet's own definition says of the fields that we render.

  python tests/golden/make_jobset_schema.py --crd=jobset.x-k8s.io_jobsets.yaml

The definition is config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of the JobSet repository.
Of its thousands of fields those stay that `launch.gke` uses; no other is allowed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from launch.gke.jobset import Run, render
from shortcut_tpu.pod.topologies import Topology

KEYWORDS = ("type", "enum", "format", "minimum", "maximum", "pattern", "maxLength", "minLength")


def pruned(schema: dict[str, Any], used: Any) -> dict[str, Any]:
    """The part of a schema that a value touches."""
    kept = {key: schema[key] for key in KEYWORDS if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if isinstance(used, dict) and "properties" in schema:
        kept["properties"] = {
            key: pruned(schema["properties"][key], value) for key, value in used.items()
        }
        kept["required"] = [key for key in schema.get("required", ()) if key in used]
        assert set(schema.get("required", ())) <= set(used), schema["required"]
        kept["additionalProperties"] = False
    elif isinstance(used, dict) and isinstance(schema.get("additionalProperties"), dict):
        some = next(iter(used.values()))
        kept["additionalProperties"] = pruned(schema["additionalProperties"], some)
    elif isinstance(used, list):
        merged: dict[str, Any] = {}
        for item in used:
            merged = {**merged, **item} if isinstance(item, dict) else item
        kept["items"] = pruned(schema["items"], merged)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--crd", type=Path, required=True)
    definition = yaml.safe_load(parser.parse_args().crd.read_text())
    run = Run("xl", "image", Topology.parse("v5e-256"), ["-m", "x"], slices=2)
    manifest = render(run)
    group, version = manifest["apiVersion"].split("/")
    assert definition["spec"]["group"] == group
    (served,) = [one for one in definition["spec"]["versions"] if one["name"] == version]
    schema = pruned(served["schema"]["openAPIV3Schema"], manifest)
    names = definition["spec"]["names"]
    schema["properties"]["kind"]["enum"] = [names["kind"]]
    schema["properties"]["apiVersion"]["enum"] = [f"{group}/{version}"]
    path = Path(__file__).with_name("jobset_schema.json")
    path.write_text(json.dumps(schema, indent=1) + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
