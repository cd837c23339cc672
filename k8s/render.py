#!/usr/bin/env python3
"""Renders each overlay into a folder, the dashboard left out: `render.py FOLDER`, with kubectl.

`k8s/rendered` is what it made last. The tests compare it where kubectl is, and check it everywhere.
"""

import pathlib
import subprocess
import sys

import yaml

target = pathlib.Path(sys.argv[1])
target.mkdir(exist_ok=True)
for overlay in sorted((pathlib.Path(__file__).parent / "overlays").iterdir()):
    rendered = subprocess.run(["kubectl", "kustomize", overlay], check=True, capture_output=True, text=True).stdout
    objects = list(yaml.safe_load_all(rendered))
    for thing in objects:
        if thing["kind"] == "ConfigMap" and "grafana-portolan.json" in thing["data"]:
            thing["data"]["grafana-portolan.json"] = "(monitoring/grafana-portolan.json)"
            # Its name has a hash of what it holds.
            thing["metadata"]["name"] = "portolan-dashboard"
    (target / f"{overlay.name}.yaml").write_text(yaml.safe_dump_all(objects, sort_keys=True, width=100))
