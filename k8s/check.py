#!/usr/bin/env python3
"""Checks what the overlays render to: schemas of the last three Kubernetes releases, and what every pod must keep.

Called by the tests. Arguments: a folder with one YAML file for each overlay. Prints each fault; status 1 if there is one.
"""

import pathlib
import re
import sys
import tomllib

import kubernetes_validate
import yaml

RELEASES = ["1.35", "1.36", "1.37"]
# Kinds that others define, with the fields of their spec that are used here.
FOREIGN = {
    ("cert-manager.io/v1", "Issuer"): {"selfSigned", "ca"},
    ("cert-manager.io/v1", "Certificate"): {
        "secretName", "duration", "renewBefore", "privateKey", "usages", "dnsNames", "issuerRef", "isCA", "commonName",
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {"selector", "podMetricsEndpoints"},
    ("monitoring.coreos.com/v1", "PrometheusRule"): {"groups"},
}
faults = []


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m|h)", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def check(overlay, objects):
    def fault(thing, message):
        faults.append(f"{overlay}: {thing['kind']} {thing['metadata']['name']}: {message}")

    def named(kind):
        return {thing["metadata"]["name"]: thing for thing in objects if thing["kind"] == kind}

    configs, services = named("ConfigMap"), named("Service")
    workloads = [thing for thing in objects if thing["kind"] in ("StatefulSet", "Deployment", "DaemonSet")]
    certified = {
        thing["spec"]["secretName"]: set(thing["spec"].get("dnsNames", [])) for thing in named("Certificate").values()
    }
    for thing in objects:
        foreign = FOREIGN.get((thing["apiVersion"], thing["kind"]))
        if foreign is not None:
            if unknown := set(thing["spec"]) - foreign:
                fault(thing, f"fields that nobody has checked: {unknown}")
            continue
        for release in RELEASES:
            try:
                kubernetes_validate.validate(thing, release, strict=True)
            except Exception as error:
                fault(thing, f"{release}: {error}")

    for thing in workloads:
        template = thing["spec"]["template"]
        pod, labels = template["spec"], template["metadata"]["labels"]
        if not thing["spec"]["selector"]["matchLabels"].items() <= labels.items():
            fault(thing, "its selector does not fit its pods")
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            fault(thing, "runs as root")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            fault(thing, "has no seccomp profile")
        if pod.get("automountServiceAccountToken") is not False:
            fault(thing, "has a token of the cluster")
        containers = pod["containers"] + pod.get("initContainers", [])
        ports = {port["name"]: port["containerPort"] for each in containers for port in each.get("ports", [])}
        for container in containers:
            name = container["name"]
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                fault(thing, f"{name} may become more than it is")
            if own.get("readOnlyRootFilesystem") is not True:
                fault(thing, f"{name} can write to its root file system")
            if own.get("capabilities") != {"drop": ["ALL"]}:
                fault(thing, f"{name} has capabilities")
            resources = container.get("resources", {})
            if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
                fault(thing, f"{name} has no requests, or no limit of memory")
            if not re.search(r":[^/:]+$", container["image"]) or container["image"].endswith(":latest"):
                fault(thing, f"{name} has no fixed image")
            if missing := {"readinessProbe", "livenessProbe"} - set(container):
                fault(thing, f"{name} lacks {missing}")
            if "portolan" in container["image"] and "startupProbe" not in container:
                fault(thing, f"{name} has no startup probe")
            defined = set()
            for variable in container.get("env", []):
                for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                    if used not in defined:
                        fault(thing, f"{name}: {variable['name']} uses {used}, which is not defined before it")
                defined.add(variable["name"])
            config = program_config(container, pod, configs)
            if config is not None:
                for used in re.findall(r"\$\{(\w+)\}", config["text"]):
                    if used not in defined:
                        fault(thing, f"{name}: its configuration uses {used}, which is not in its environment")
                drain = seconds(config["drain_timeout"])
                stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
                if pod["terminationGracePeriodSeconds"] < drain + stop + 10:
                    fault(thing, f"{name} may drain for {drain} s and waits {stop} s before, but gets less")
                for listener in config.get("listeners", []):
                    first, last = map(int, listener["passive_ports"].split("-"))
                    shown = {port for key, port in ports.items() if key.startswith("passive-")}
                    if shown != set(range(first, last + 1)):
                        fault(thing, f"{name}: passive ports {first}-{last} are not those of the pod")
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", [])}
        for container in containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    fault(thing, f"there is no volume {mount['name']}")
        for volume in pod.get("volumes", []):
            if "configMap" in volume and volume["configMap"]["name"] not in configs:
                fault(thing, f"there is no ConfigMap {volume['configMap']['name']}")
            if "secret" in volume and volume["secret"]["defaultMode"] & 0o077:
                fault(thing, f"{volume['name']}: others may read the secret")

    for service in services.values():
        selector = service["spec"]["selector"]
        pods = [
            thing for thing in workloads
            if {k: v for k, v in selector.items() if k != "statefulset.kubernetes.io/pod-name"}.items()
            <= thing["spec"]["template"]["metadata"]["labels"].items()
        ]
        if not pods:
            fault(service, "selects no pod")
        for thing in pods:
            pod = thing["spec"]["template"]["spec"]
            names = {p["name"] for c in pod["containers"] + pod.get("initContainers", []) for p in c.get("ports", [])}
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in names:
                    fault(service, f"{thing['metadata']['name']} has no port {port['targetPort']}")

    agents = [
        thing for thing in workloads
        if thing["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/component") == "agent"
    ]
    if len(agents) != 1:
        faults.append(f"{overlay}: {len(agents)} kinds of agents")
    for thing in agents:
        names = certified["portolan-agents-tls"]
        count = len(names)
        if thing["kind"] == "StatefulSet":
            count = thing["spec"]["replicas"]
            wanted = {f"{thing['metadata']['name']}-{number}" for number in range(count)}
            if names != wanted:
                fault(thing, f"its certificate names {names}")
        for config in configs.values():
            text = config["data"].get("frontend.toml")
            if text and tomllib.loads(text)["discovery"]["nodes_min"] != count:
                fault(config, f"nodes_min is not {count}")
    for kind in ("NetworkPolicy", "PodDisruptionBudget", "ServiceAccount", "PodMonitor", "PrometheusRule"):
        if not named(kind):
            faults.append(f"{overlay}: no {kind}")


def program_config(container, pod, configs):
    """The configuration that a container of ours reads."""
    for argument in container.get("command", []):
        if argument.endswith(".toml"):
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volume = mounts[str(pathlib.PurePosixPath(argument).parent)]
            source = next(each for each in pod["volumes"] if each["name"] == volume)["configMap"]["name"]
            text = configs[source]["data"][pathlib.PurePosixPath(argument).name]
            return tomllib.loads(text) | {"text": text}
    return None


for file in sorted(pathlib.Path(sys.argv[1]).glob("*.yaml")):
    check(file.stem, list(yaml.safe_load_all(file.read_text())))
print(*faults, sep="\n")
sys.exit(bool(faults))
