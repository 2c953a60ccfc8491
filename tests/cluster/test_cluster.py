"""The files of `cluster/` against the schema of the tool that reads each, what they promise, and that they agree."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging as uploads
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME
from ray.serve.schema import ServeDeploySchema

from tests.support.paths import PROJECT

ROOT = PROJECT
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
LAUNCHED = ("aws", "on-premise")
MANIFESTS = ("raycluster", "rayjob")


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a file before it asks a cloud; raises what it would refuse."""
    whole: dict[str, Any] = prepare_config(deepcopy(config))
    validate_config(whole)
    return whole


def put(tree: Any, path: str, value: Any) -> Any:
    """A copy with one more or another value at a dotted path."""
    changed = deepcopy(tree)
    *above, last = path.split(".")
    node = changed
    for key in above:
        node = node[int(key) if isinstance(node, list) else key]
    node[last] = value
    return changed


# --- Ray's cluster launcher ------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_takes_it(name: str) -> None:
    prepared(read(f"{name}.yaml"))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("aws", "idle_minutes", 10),
        ("aws", "head_node_type", "boss"),
        ("aws", "provider.security_group", {"Name": "foldray", "IpPermissions": []}),
        ("aws", "available_node_types.gpu_spot.min_workers", 13),
        ("aws", "available_node_types.gpu_spot.spot", True),
        ("aws", "available_node_types.head.resources", {"CPU": "none"}),
        ("on-premise", "auth.ssh_key", "~/.ssh/id_ed25519"),
        ("on-premise", "provider.worker_ips", "192.0.2.11"),
        ("on-premise", "worker_start_ray_commands", "ray start"),
    ],
)
def test_ray_up_refuses_an_error_planted_in_it(name: str, path: str, value: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        prepared(put(read(f"{name}.yaml"), path, value))


@cache
def run_instances() -> Any:
    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def errors_of_launch(node_config: dict[str, Any]) -> str:
    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, run_instances())
    return str(report.generate_report())


def test_ec2_takes_every_node_type() -> None:
    for kind in read("aws.yaml")["available_node_types"].values():
        assert errors_of_launch(kind["node_config"]) == ""


@pytest.mark.parametrize(
    ("field", "value"), [("SpotPrice", "1"), ("IamInstanceProfile", "foldray-node"), ("InstanceMarketOptions", "spot")]
)
def test_ec2_refuses_an_error_planted_in_a_node_type(field: str, value: Any) -> None:
    config = read("aws.yaml")["available_node_types"]["gpu"]["node_config"]
    assert errors_of_launch({**config, field: value}) != ""


def test_head_on_aws_does_no_work_and_gpus_fall_back_to_on_demand() -> None:
    kinds = prepared(read("aws.yaml"))["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    spot, on_demand = kinds["gpu_spot"], kinds["gpu"]
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == on_demand["node_config"]
    assert spot["resources"] == on_demand["resources"]
    assert spot["priority"] > on_demand["priority"]
    assert all(kind["min_workers"] == 0 for kind in kinds.values())


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_mount_is_there_and_the_package_is_whole(name: str) -> None:
    mounts = read(f"{name}.yaml")["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert {Path(local).name for local in mounts.values()} == {Path(remote).name for remote in mounts}
    assert set(mounts.values()) == set(copied_into_image())
    assert all((ROOT / local).exists() for local in mounts.values())


@pytest.mark.parametrize("name", LAUNCHED)
def test_setup_gives_every_process_its_environment(name: str, tmp_path: Path) -> None:
    writes = [
        line for line in read(f"{name}.yaml")["setup_commands"] if "foldray-env" in line and "bin/pip" not in line
    ]
    for line in writes * 2:  # `ray up` may run them again
        bash(line, tmp_path)
    assert (tmp_path / ".bashrc").read_text().count("foldray-env") == 1
    found = dict(line.split("=", 1) for line in bash(". ~/.bashrc; env", tmp_path).splitlines() if "=" in line)
    assert found["PATH"].startswith(f"{tmp_path}/foldray-venv/bin:/")
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_TRAIN_V2_ENABLED"] == "1"
    region = read(f"{name}.yaml")["provider"].get("region", "us-east-1")
    assert found["AWS_REGION"] == region


def bash(command: str, home: Path) -> str:
    around = {"HOME": str(home), "PATH": os.environ["PATH"]}
    return subprocess.run(["bash", "-c", command], env=around, check=True, capture_output=True, text=True).stdout


# --- KubeRay ---------------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """A schema in which every object refuses fields that it does not name, as Kubernetes does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


@cache
def checker(kind: str) -> Any:
    file = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"no schema of KubeRay's {kind} at {file}")
    versions = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (version,) = (found for found in versions if found["name"] == "v1")
    return jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


def refused(manifest: dict[str, Any]) -> list[str]:
    return [error.json_path for error in checker(manifest["kind"]).iter_errors(manifest)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_takes_it(name: str) -> None:
    manifest = read(f"kuberay/{name}.yaml")
    assert manifest["apiVersion"] == "ray.io/v1"
    assert refused(manifest) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ttlSeconds", 600),
        ("backoffLimit", "two"),
        ("rayClusterSpec.authOptions.mode", "password"),
        ("rayClusterSpec.headGroupSpec.template.spec.containers.0.envFrom", [{"secret": {"name": "foldray-s3"}}]),
        ("rayClusterSpec.workerGroupSpecs.0.minReplica", 0),
        ("rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limit", {"nvidia.com/gpu": 1}),
        ("rayClusterSpec.autoscalerOptions.version", "v3"),
    ],
)
def test_kuberay_refuses_an_error_planted_in_it(path: str, value: Any) -> None:
    assert refused(put(read("kuberay/rayjob.yaml"), f"spec.{path}", value)) != []


def test_a_job_of_its_own_has_the_same_cluster() -> None:
    assert read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"] == read("kuberay/raycluster.yaml")["spec"]


def test_a_service_is_a_cluster_that_kuberay_takes_and_a_config_that_serve_takes() -> None:
    service = read("kuberay/rayservice.yaml")["spec"]
    assert refused({**read("kuberay/raycluster.yaml"), "spec": service["rayClusterConfig"]}) == []
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (served,) = config.applications
    module, _, builder = served.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), builder))
    assert served.args.keys() <= {"model", "name", "depth", "latency", "replicas", "threads", "gpus"}
    (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == served.args["threads"]
    (rule,) = read("kuberay/serve-network-policy.yaml")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": config.http_options.port}]


def test_the_head_in_kubernetes_does_no_work_and_every_pod_reaches_the_store() -> None:
    spec = read("kuberay/raycluster.yaml")["spec"]
    account = read("kuberay/service-account.yaml")["metadata"]["name"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpu, cpu = spec["workerGroupSpecs"]
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    for group in (spec["headGroupSpec"], gpu, cpu):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] == account
        assert container["envFrom"] == [{"secretRef": {"name": "foldray-s3", "optional": True}}]
        assert "AWS_REGION" in {variable["name"] for variable in container["env"]}
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == image_user()
    for group in (gpu, cpu):
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


# --- Who can reach it, and with what ---------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHED)
def test_dashboard_stays_on_loopback_and_asks_for_the_token(name: str) -> None:
    config = read(f"{name}.yaml")
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    options = dict(word.split("=", 1) for word in shlex.split(start) if word.startswith("--") and "=" in word)
    assert options["--dashboard-host"] == "127.0.0.1"
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])


def test_kubernetes_lets_in_only_the_cluster_its_operator_and_its_job() -> None:
    policy = read("kuberay/network-policy.yaml")["spec"]
    nodes = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert (policy["podSelector"], policy["policyTypes"]) == (nodes, ["Ingress"])
    inside, outside = policy["ingress"]
    assert inside == {"from": [{"podSelector": nodes}]}
    assert outside["ports"] == [{"protocol": "TCP", "port": 8265}]
    job = read("kuberay/rayjob.yaml")["metadata"]["name"]
    assert {"podSelector": {"matchLabels": {"batch.kubernetes.io/job-name": job}}} in outside["from"]


def test_kubernetes_keeps_the_dashboard_inside_and_asks_for_the_token() -> None:
    spec = read("kuberay/raycluster.yaml")["spec"]
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["authOptions"] == {"mode": "token"}
    assert not spec["headGroupSpec"].keys() & {"enableIngress", "ingressOptions"}


OPEN = re.compile(r"0\.0\.0\.0|::/0|NodePort|LoadBalancer|hostNetwork|--dashboard-host=(?!127\.0\.0\.1\b)")
SECRET = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|PRIVATE KEY"
    r"|(?:KEY|TOKEN|SECRET|PASSWORD)\w*[\"']?\s*[=:]\s*[\"']?[\w/+]*[0-9/+][\w/+]{11}",
    re.IGNORECASE,
)


@pytest.mark.parametrize("file", [*sorted(CLUSTER.rglob("*.*")), CLUSTER / "Dockerfile"], ids=lambda file: file.name)
def test_no_file_opens_a_port_to_the_world_or_holds_a_key(file: Path) -> None:
    # A pod's own address, which a key and serve-network-policy.yaml guard.
    text = file.read_text().replace("http_options: {host: 0.0.0.0, port: 8000", "")
    assert OPEN.findall(text) == []
    assert SECRET.findall(text) == []


@pytest.mark.parametrize("line", ["serviceType: NodePort", "CidrIp=0.0.0.0/0", "ray start --dashboard-host=::"])
def test_an_open_port_would_be_seen(line: str) -> None:
    assert OPEN.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "id: AKIA" + "Z2" * 8,
        "AWS_SECRET_ACCESS_KEY=" + "wJalrXUtnFEMI/K7" * 2,
        '{"AWS_SECRET_ACCESS_KEY": "' + "0aB1" * 10 + '"}',
        "RAY_AUTH_TOKEN=" + "0f3c" * 16,
    ],
)
def test_a_key_would_be_seen(line: str) -> None:
    assert SECRET.search(line)


def test_the_security_group_is_one_that_the_readme_makes() -> None:
    described = read("aws.yaml")
    # By its id, on every node: by name `ray up` would make one that is open to the world where it finds none.
    assert "security_group" not in described["provider"]
    groups = [kind["node_config"]["SecurityGroupIds"] for kind in described["available_node_types"].values()]
    assert groups == [["sg-0123456789abcdef0"]] * len(groups)
    said = "\n".join(commands("AWS"))
    assert "s/sg-0123456789abcdef0/$group/" in said
    assert "--group-name foldray" in said
    (opened,) = (line for line in commands("AWS") if "authorize-security-group-ingress" in line)
    assert "--group-name foldray" in opened
    assert re.findall(r"CidrIp=([^}]+)", opened) == ["YOUR-ADDRESS/32"]
    assert re.findall(r"FromPort=(\d+),ToPort=(\d+)", opened) == [("22", "22")]


# --- IAM -------------------------------------------------------------------------------------------


def statements(name: str) -> list[dict[str, Any]]:
    policy = json.loads((CLUSTER / f"iam-{name}.json").read_text())
    assert policy["Version"] == "2012-10-17"
    return list(policy["Statement"])


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowed(name: str) -> dict[str, list[str]]:
    """The resources of each action."""
    found: dict[str, list[str]] = {}
    for statement in statements(name):
        for action in listed(statement["Action"]):
            found.setdefault(action, []).extend(listed(statement["Resource"]))
    return found


@pytest.mark.parametrize("name", ["node", "head"])
def test_policies_name_actions_and_resources(name: str) -> None:
    for statement in statements(name):
        assert statement["Effect"] == "Allow"
        assert not statement.keys() & {"NotAction", "NotResource"}
        actions = listed(statement["Action"])
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action) for action in actions), actions
        # EC2 knows no resources for what only describes.
        assert "*" not in listed(statement["Resource"]) or all(":Describe" in action for action in actions)


def test_a_node_may_do_to_its_store_what_the_code_does() -> None:
    needs = {
        "get_object": "s3:GetObject",
        "head_object": "s3:GetObject",
        "put_object": "s3:PutObject",
        "upload_fileobj": "s3:PutObject",
        "delete_object": "s3:DeleteObject",
        "delete_objects": "s3:DeleteObject",
        "list_objects_v2": "s3:ListBucket",
    }
    code = (ROOT / "foldray/storage/objects.py").read_text()
    asked = set(re.findall(r"client(?:_of\(uri\))?\.(\w+)\(", code)) | set(re.findall(r'_ask\(uri, "(\w+)"', code))
    granted = allowed("node")
    assert {needs[operation] for operation in asked} == granted.keys() - {"s3:AbortMultipartUpload"}
    for action, resources in granted.items():
        below = "" if action == "s3:ListBucket" else "/foldray/*"
        assert f"arn:aws:s3:::my-bucket{below}" in resources
        assert not any(resource.startswith("arn:aws:s3:::*") for resource in resources)
    (store,) = (found for found in statements("node") if found["Sid"] == "ListStore")
    assert "foldray/*" in store["Condition"]["StringLike"]["s3:prefix"]


def test_a_node_only_reads_corpora() -> None:
    for action, resources in allowed("node").items():
        assert action in ("s3:GetObject", "s3:ListBucket") or not any("my-corpora" in found for found in resources)


def test_the_head_touches_only_instances_of_its_cluster() -> None:
    config = read("aws.yaml")
    for statement in statements("head"):
        actions = set(listed(statement["Action"]))
        equal = statement.get("Condition", {}).get("StringEquals", {})
        if "ec2:TerminateInstances" in actions:
            assert equal == {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": config["cluster_name"]}
        if "ec2:CreateTags" in actions:
            assert equal in (
                {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": config["cluster_name"]},
                {"ec2:CreateAction": "RunInstances"},
            )
        if "ec2:RunInstances" in actions and any(":instance/" in found for found in listed(statement["Resource"])):
            workers = {
                kind["node_config"]["InstanceType"]
                for name, kind in config["available_node_types"].items()
                if name != config["head_node_type"]
            }
            assert equal.pop(f"aws:RequestTag/{TAG_RAY_CLUSTER_NAME}") == config["cluster_name"]
            assert set(equal.pop("ec2:InstanceType")) == workers
        if "ec2:RunInstances" in actions:
            assert equal == {"aws:RequestedRegion": config["provider"]["region"]}
        if "iam:PassRole" in actions:
            assert equal == {"iam:PassedToService": "ec2.amazonaws.com"}


def test_roles_are_those_that_the_readme_makes() -> None:
    kinds = read("aws.yaml")["available_node_types"]
    used = {name: kind["node_config"]["IamInstanceProfile"] for name, kind in kinds.items()}
    assert used.pop("head") == {"Name": "foldray-head"}
    assert all(profile == {"Name": "foldray-node"} for profile in used.values())
    assert allowed("head")["iam:PassRole"] == ["arn:aws:iam::*:role/foldray-node"]
    assert any(line.startswith("for role in head node; do") for line in commands("AWS"))


# --- Versions and the image ------------------------------------------------------------------------


@cache
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def test_every_file_says_one_ray_that_the_project_takes() -> None:
    wanted = {found.name: found for found in map(Requirement, project()["dependencies"])}["ray"]
    said = {
        "aws.yaml": ray_in("aws.yaml"),
        "on-premise.yaml": ray_in("on-premise.yaml"),
        "Dockerfile": re.findall(r"ARG RAY_VERSION=(\S+)", (CLUSTER / "Dockerfile").read_text()),
        "README.md": re.findall(r"Ray \((\d\S+)\)", (CLUSTER / "README.md").read_text()),
        "raycluster.yaml": [str(read("kuberay/raycluster.yaml")["spec"]["rayVersion"])],
    }
    assert {version for versions in said.values() for version in versions} == {said["Dockerfile"][0]}, said
    assert all(len(versions) == 1 for versions in said.values()), said
    assert wanted.specifier.contains(said["Dockerfile"][0])
    for text in (CLUSTER / "aws.yaml", CLUSTER / "on-premise.yaml", CLUSTER / "Dockerfile"):
        (extras,) = re.findall(r"ray\[([\w,]+)\]", text.read_text())
        assert set(extras.split(",")) == wanted.extras


def ray_in(name: str) -> list[str]:
    return re.findall(r"ray\[[\w,]+\]==([\d.]+)", (CLUSTER / name).read_text())


def test_the_image_has_a_python_that_the_project_takes() -> None:
    (base,) = re.findall(r"^FROM (\S+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    (version,) = re.findall(r"^python:(\d+\.\d+)\.\d+-slim-\w+$", base)
    assert SpecifierSet(project()["requires-python"]).contains(f"{version}.0")


def copied_into_image() -> list[str]:
    lines = re.findall(r"^COPY (.+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def image_user() -> int:
    text = (CLUSTER / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert f"--uid {user} " in text
    return int(user)


def test_the_image_is_built_from_what_the_package_needs() -> None:
    sources = copied_into_image()
    assert all((ROOT / source).exists() for source in sources)
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wheel = {pattern.rstrip("*") for pattern in tool["packages"]["find"]["include"]}
    needed = wheel | {"pyproject.toml", project()["readme"]}
    assert set(sources) == needed | set(project()["license-files"])
    let_through = re.findall(r"^!(.+)$", (CLUSTER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(let_through) == sorted(sources)


# --- README ----------------------------------------------------------------------------------------


@cache
def readme() -> str:
    return (CLUSTER / "README.md").read_text()


def commands(title: str) -> list[str]:
    """The commands of a section's first block, each with what continues it."""
    section = re.split(r"^## ", readme(), flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(title + "\n"))
    (block, *_) = re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)
    found: list[str] = []
    for line in block.splitlines():
        continues = line.startswith("      ") or line.strip() == "done"
        if continues:
            found[-1] += f"\n{line.strip()}"
        else:
            found.append(line.strip())
    return found


@pytest.mark.parametrize("title", ["AWS", "Machines of your own", "KubeRay"])
def test_ten_commands_from_nothing_to_results(title: str) -> None:
    found = commands(title)
    assert 5 <= len(found) <= 10
    for command in found:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_readme_names_files_and_modules_that_exist() -> None:
    named = set(re.findall(r"(?<!tests/)(?:cluster/[\w./-]*\w\.\w+|cluster/Dockerfile)", readme()))
    named |= {f"cluster/{link}" for link in re.findall(r"\]\(([\w./-]+)\)", readme())}
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    modules = set(re.findall(r"pipelines\.(\w+)", readme() + (CLUSTER / "kuberay/rayjob.yaml").read_text()))
    assert [name for name in sorted(modules) if not (ROOT / "pipelines" / f"{name}.py").exists()] == []


def test_a_job_carries_code_and_nothing_heavy(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    light = {"foldray/cli.py", "pipelines/run.py", "pyproject.toml", ".gitignore"}
    heavy = {".venv/lib/libtorch.so", ".git/objects/pack", "foldray-store/runs/model", "foldray/__pycache__/cli.pyc"}
    for name in (light | heavy) - {".gitignore"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert set(uploaded(tmp_path)) == light


def uploaded(folder: Path) -> Iterator[str]:
    """Files that `ray job submit --working-dir` packs, by Ray's own walk."""
    found: list[Path] = []
    always = uploads._get_excludes(folder, get_runtime_env_default_excludes())
    uploads._dir_travel(folder, [always], found.append, include_gitignore=True)
    return (str(file.relative_to(folder)) for file in found if file.is_file())
