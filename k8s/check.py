#!/usr/bin/env python3
"""Checks what the overlays render to: schemas of the last three Kubernetes releases, what every pod must keep, and that what
belongs together fits: ports, probes and configurations, selectors, policies, certificates, budgets, drains.

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
# Made by the operator's own hand.
OWN_SECRETS = {"portolan-admins"}
FRONT_END = {"app.kubernetes.io/name": "portolan", "app.kubernetes.io/component": "frontend"}
AGENT = {"portolan.example.org/agent-pod": "true"}
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
faults = []


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m|h)", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def fits(selector, labels):
    return selector.items() <= labels.items()


class Overlay:
    """What one overlay renders to."""

    def __init__(self, name, objects):
        self.name, self.objects = name, objects
        self.workloads = [one for one in objects if one["kind"] in ("StatefulSet", "Deployment", "DaemonSet")]
        self.configs = {one["metadata"]["name"]: one for one in self.kind("ConfigMap")}

    def kind(self, kind):
        return [one for one in self.objects if one["kind"] == kind]

    def fault(self, thing, message):
        faults.append(f"{self.name}: {thing['kind']} {thing['metadata']['name']}: {message}")

    def selected(self, selector):
        return [one for one in self.workloads if fits(selector, labels(one))]

    def check(self):
        self.schemas()
        for workload in self.workloads:
            self.pod(workload)
        self.services()
        self.certificates()
        self.nodes()
        self.policies()
        self.budgets()
        self.monitors()
        for kind in ("NetworkPolicy", "PodDisruptionBudget", "ServiceAccount", "PodMonitor", "PrometheusRule"):
            if not self.kind(kind):
                faults.append(f"{self.name}: no {kind}")

    def schemas(self):
        for thing in self.objects:
            foreign = FOREIGN.get((thing["apiVersion"], thing["kind"]))
            if foreign is not None:
                if unknown := set(thing["spec"]) - foreign:
                    self.fault(thing, f"fields that nobody has checked: {unknown}")
                continue
            for release in RELEASES:
                try:
                    kubernetes_validate.validate(thing, release, strict=True)
                except Exception as error:
                    self.fault(thing, f"{release}: {error}")

    def pod(self, workload):
        pod = workload["spec"]["template"]["spec"]
        if not fits(workload["spec"]["selector"]["matchLabels"], labels(workload)):
            self.fault(workload, "its selector does not fit its pods")
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            self.fault(workload, "runs as root")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            self.fault(workload, "has no seccomp profile")
        if pod.get("automountServiceAccountToken") is not False:
            self.fault(workload, "has a token of the cluster")
        names = [port["name"] for each in containers(workload) for port in each.get("ports", [])]
        if len(names) != len(set(names)):
            self.fault(workload, "two of its ports have one name")
        for container in containers(workload):
            self.container(workload, container)
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for container in containers(workload):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    self.fault(workload, f"there is no volume {mount['name']}")
        made = {one["spec"]["secretName"] for one in self.kind("Certificate")} | OWN_SECRETS
        for volume in pod.get("volumes", []):
            if "configMap" in volume and volume["configMap"]["name"] not in self.configs:
                self.fault(workload, f"there is no ConfigMap {volume['configMap']['name']}")
            if "secret" in volume and volume["secret"]["defaultMode"] & 0o077:
                self.fault(workload, f"{volume['name']}: others may read the secret")
            if "secret" in volume and volume["secret"]["secretName"] not in made:
                self.fault(workload, f"nobody makes the Secret {volume['secret']['secretName']}")

    def container(self, workload, container):
        name = container["name"]
        pod = workload["spec"]["template"]["spec"]
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            self.fault(workload, f"{name} may become more than it is")
        if own.get("readOnlyRootFilesystem") is not True:
            self.fault(workload, f"{name} can write to its root file system")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            self.fault(workload, f"{name} has capabilities")
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            self.fault(workload, f"{name} has no requests, or no limit of memory")
        if not re.search(r":[^/:]+$", container["image"]) or container["image"].endswith(":latest"):
            self.fault(workload, f"{name} has no fixed image")
        wanted = {"readinessProbe", "livenessProbe"}
        if is_ours(container):
            wanted.add("startupProbe")
        # Beside a mail server: it must neither hold it up nor take it out of its Services.
        if is_ours(container) and len(pod["containers"]) > 1:
            wanted = {"livenessProbe"}
            if extra := {"readinessProbe", "startupProbe"} & set(container):
                self.fault(workload, f"{name} has {extra}, which the mail server would wait for")
        if missing := wanted - set(container):
            self.fault(workload, f"{name} lacks {missing}")
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        defined = set()
        for variable in container.get("env", []):
            for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                if used not in defined:
                    self.fault(workload, f"{name}: {variable['name']} uses {used}, which is not defined before it")
            defined.add(variable["name"])
        config = self.config(container, pod)
        if config is None:
            return
        for used in re.findall(r"\$\{(\w+)\}", config["text"]):
            if used not in defined:
                self.fault(workload, f"{name}: its configuration uses {used}, which is not in its environment")
        drain = seconds(config["drain_timeout"])
        stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if pod.get("terminationGracePeriodSeconds", 30) < drain + stop + 10:
            self.fault(workload, f"{name} may drain for {drain} s and waits {stop} s before, but gets less")
        http = port_of(config["http"]["address"])
        for probe, page in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            asked = container.get(probe, {}).get("httpGet")
            if asked is not None and (asked["path"] != page or ports.get(asked["port"]) != http):
                self.fault(workload, f"{name}: {probe} does not ask for {page} at port {http}")
        served = {http}
        if "listen" in config:
            served.add(port_of(config["listen"]["address"]))
        for listener in config.get("listeners", []):
            served.add(port_of(listener["address"]))
            first, last = map(int, listener["passive_ports"].split("-"))
            served |= set(range(first, last + 1))
        if served != set(ports.values()):
            self.fault(workload, f"{name} serves {sorted(served)}, and its ports are {sorted(ports.values())}")

    def config(self, container, pod):
        """The configuration that a container of ours reads."""
        for argument in container.get("command", []):
            if argument.endswith(".toml"):
                mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                volume = mounts[str(pathlib.PurePosixPath(argument).parent)]
                source = next(each for each in pod["volumes"] if each["name"] == volume)["configMap"]["name"]
                text = self.configs[source]["data"][pathlib.PurePosixPath(argument).name]
                return tomllib.loads(text) | {"text": text}
        return None

    def our_config(self, workload):
        found = (self.config(each, workload["spec"]["template"]["spec"]) for each in containers(workload))
        return next(config for config in found if config is not None)

    def services(self):
        for service in self.kind("Service"):
            selector = dict(service["spec"]["selector"])
            name = selector.pop("statefulset.kubernetes.io/pod-name", None)
            selected = self.selected(selector)
            if not selected:
                self.fault(service, "selects no pod")
            for workload in selected:
                names = {port["name"] for each in containers(workload) for port in each.get("ports", [])}
                for port in service["spec"]["ports"]:
                    if port["targetPort"] not in names:
                        self.fault(service, f"{workload['metadata']['name']} has no port {port['targetPort']}")
                replicas = workload["spec"].get("replicas", 0)
                there = {f"{workload['metadata']['name']}-{number}" for number in range(replicas)}
                if name is not None and name not in there:
                    self.fault(service, f"there is no pod {name}")

    def certificates(self):
        """The names that clients come by are in the certificate that they see."""
        shown = next(one for one in self.kind("Certificate") if one["spec"]["secretName"] == "portolan-ftp-tls")
        names = set(shown["spec"]["dnsNames"])
        for service in self.kind("Service"):
            annotations = service["metadata"].get("annotations", {})
            led = annotations.get("external-dns.alpha.kubernetes.io/hostname")
            if led is not None and led not in names:
                self.fault(shown, f"it does not name {led}, by which clients come")

    def nodes(self):
        """Agents are found, and known by their certificate."""
        agents = self.selected(AGENT)
        if len(agents) != 1:
            faults.append(f"{self.name}: {len(agents)} kinds of agents")
            return
        names = next(one for one in self.kind("Certificate") if one["spec"]["secretName"] == "portolan-agents-tls")
        names, count = set(names["spec"]["dnsNames"]), len(names["spec"]["dnsNames"])
        if agents[0]["kind"] == "StatefulSet":
            count = agents[0]["spec"]["replicas"]
            wanted = {f"{agents[0]['metadata']['name']}-{number}" for number in range(count)}
            if names != wanted:
                self.fault(agents[0], f"its certificate names {names}")
        listened = port_of(self.our_config(agents[0])["listen"]["address"])
        for front in self.selected(FRONT_END):
            discovery = self.our_config(front)["discovery"]
            if discovery["nodes_min"] != count:
                self.fault(front, f"nodes_min is not {count}")
            asked = discovery["addresses"].rsplit(":", 1)
            service = next((one for one in self.kind("Service") if one["metadata"]["name"] == asked[0]), None)
            if service is None or service["spec"].get("clusterIP") != "None":
                self.fault(front, f"{asked[0]} is no headless Service")
            elif not service["spec"].get("publishNotReadyAddresses") or service["spec"]["selector"] != AGENT:
                self.fault(service, "it does not lead to all agents")
            # A headless Service translates no port.
            if int(asked[1]) != listened:
                self.fault(front, f"it looks for agents at port {asked[1]}, and they listen at {listened}")

    def policies(self):
        """What must come through does. Pods on the network of their hosts no policy guards, nor knows."""
        policies = self.kind("NetworkPolicy")
        for policy in policies:
            if not self.selected(policy["spec"]["podSelector"]["matchLabels"]):
                self.fault(policy, "guards no pod")
        fronts, agents = self.selected(FRONT_END), self.selected(AGENT)
        balancers = [one for one in self.workloads if "haproxy" in one["metadata"]["name"]]
        needed = []
        for front in fronts:
            config = self.our_config(front)
            listener = config["listeners"][0]
            first, last = map(int, listener["passive_ports"].split("-"))
            ftp = [port_of(listener["address"]), first, last]
            for agent in agents:
                needed += [(front, agent, [port_of(self.our_config(agent)["listen"]["address"])])]
            for outer in balancers:
                needed += [(None, outer, ftp), (outer, front, ftp)]
            if balancers:
                if listener["proxy_protocol"]["data"] != "header":
                    self.fault(front, "it does not take the balancer's header")
                elif self.lets(policies, None, front, ftp[0]):
                    self.fault(front, "everybody may send it a PROXY header")
            else:
                needed += [(None, front, ftp)]
            needed += [(front, "dns", [53])]
        for one in [*fronts, *agents]:
            needed += [("monitoring", one, [port_of(self.our_config(one)["http"]["address"])])]
        for source, target, ports in needed:
            for port in ports:
                if not self.lets(policies, source, target, port):
                    names = [one if isinstance(one, str) or one is None else one["metadata"]["name"] for one in (source, target)]
                    faults.append(f"{self.name}: no policy lets {names[0]} reach {names[1]} at port {port}")

    def lets(self, policies, source, target, port):
        """Whether a policy lets `source` reach `target`: workloads, or `None` for anybody, `monitoring` or `dns`."""

        protocol = "UDP" if target == "dns" else "TCP"

        def among(rules, key, peer):
            for rule in rules:
                ports = rule.get("ports", [])
                fitting = [each for each in ports if each.get("protocol", "TCP") == protocol]
                ranges = [(each["port"], each.get("endPort", each["port"])) for each in fitting]
                if ports and not any(first <= port <= last for first, last in ranges):
                    continue
                peers = rule.get(key)
                if peers is None:
                    return True
                for each in peers:
                    if on_host(peer):
                        found = "ipBlock" in each
                    elif peer == "monitoring":
                        found = each.get("namespaceSelector", {}).get("matchLabels") == MONITORING
                    else:
                        selector = each.get("podSelector", {}).get("matchLabels")
                        found = isinstance(peer, dict) and selector is not None and fits(selector, labels(peer))
                    if found:
                        return True
            return False

        for one, other, direction, key in ((source, target, "Egress", "to"), (target, source, "Ingress", "from")):
            if not isinstance(one, dict) or on_host(one):
                continue
            guards = [
                policy["spec"] for policy in policies
                if fits(policy["spec"]["podSelector"]["matchLabels"], labels(one)) and direction in policy["spec"]["policyTypes"]
            ]
            if guards and not any(among(guard.get(direction.lower(), []), key, other) for guard in guards):
                return False
        return True

    def budgets(self):
        covered = []
        for budget in self.kind("PodDisruptionBudget"):
            selected = self.selected(budget["spec"]["selector"]["matchLabels"])
            if not selected:
                self.fault(budget, "is for no pod")
            for workload in selected:
                if workload["kind"] == "DaemonSet":
                    self.fault(budget, "a DaemonSet has no scale to count by")
                covered.append(workload["metadata"]["name"])
        for name in {name for name in covered if covered.count(name) > 1}:
            faults.append(f"{self.name}: {name} has two budgets: nobody may evict its pods")
        scaled = {one["spec"]["scaleTargetRef"]["name"] for one in self.kind("HorizontalPodAutoscaler")}
        for workload in self.workloads:
            if workload["metadata"]["name"] in scaled and "replicas" in workload["spec"]:
                self.fault(workload, "has a number of replicas beside an autoscaler")

    def monitors(self):
        for monitor in self.kind("PodMonitor"):
            selected = self.selected(monitor["spec"]["selector"]["matchLabels"])
            if not selected:
                self.fault(monitor, "selects no pod")
            for workload in selected:
                http = port_of(self.our_config(workload)["http"]["address"])
                ports = {port["name"]: port["containerPort"] for each in containers(workload) for port in each.get("ports", [])}
                for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                    if ports.get(endpoint["port"]) != http:
                        self.fault(monitor, f"{endpoint['port']} is not where {workload['metadata']['name']} shows its metrics")


def labels(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def containers(workload):
    pod = workload["spec"]["template"]["spec"]
    return pod["containers"] + pod.get("initContainers", [])


def is_ours(container):
    return "portolan" in container["image"]


def on_host(workload):
    return isinstance(workload, dict) and workload["spec"]["template"]["spec"].get("hostNetwork", False)


for file in sorted(pathlib.Path(sys.argv[1]).glob("*.yaml")):
    Overlay(file.stem, list(yaml.safe_load_all(file.read_text()))).check()
print(*faults, sep="\n")
sys.exit(bool(faults))
