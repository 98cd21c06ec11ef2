"""The files for whoever runs the service: compose.yaml, the Dockerfile, alerts, the dashboard, units. Read without their programs.

Whether the queries in them ask for what the server exports is tested in `tests/server/test_ops.py`, which has a server.
"""

from __future__ import annotations

import configparser
import fnmatch
import json
import os
import plistlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rag.settings import PREFIX, Server, load
from server.cli import build_parser
from tests import promql

ROOT = Path(__file__).resolve().parents[1]
OPS = ROOT / "ops"
RULES = OPS / "prometheus" / "rules.yml"
DASHBOARD = OPS / "grafana" / "dashboards" / "readingroom.json"


def parsed(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def known_settings(variables: dict[str, str]) -> None:
    """Raises `InvalidSettings` if a variable of ours among them is no setting, or its value is none."""
    ours = {name: value for name, value in variables.items() if name.startswith(PREFIX)}
    assert ours
    load(env=ours, toml=None)


# compose.yaml


@pytest.fixture
def compose() -> dict[str, Any]:
    """The whole file."""
    return parsed(ROOT / "compose.yaml")


def filled(text: str, **variables: str) -> str:
    """Compose's `${NAME}`, `${NAME:-usual}` and `${NAME:?message}`. Raises `KeyError` for one that must be set."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if found := variables.get(name):
            return found
        if operator == ":-":
            return rest
        raise KeyError(name)

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


def test_the_service_works_by_itself(compose: dict[str, Any]) -> None:
    """Without a profile it alone starts, and the one thing that must be set is its key."""
    assert [name for name, service in compose["services"].items() if "profiles" not in service] == ["readingroom"]
    service = compose["services"]["readingroom"]
    environment = service["environment"]
    with pytest.raises(KeyError, match="READINGROOM_SERVER__KEY"):
        [filled(value) for value in environment.values()]
    variables = {name: filled(value, READINGROOM_SERVER__KEY="k") for name, value in environment.items()}
    known_settings(variables)
    assert variables["READINGROOM_STORE__URL"] == ""
    for other, terms in service["depends_on"].items():
        assert terms["required"] is False, f"{other} is of a profile, and would be missed without it"
    # Answers may end before the container is killed.
    assert int(service["stop_grace_period"].removesuffix("s")) > Server().stop_s


def test_every_service_is_of_a_profile_that_the_guide_names(compose: dict[str, Any]) -> None:
    """What somebody types after `--profile`."""
    profiles = {profile for service in compose["services"].values() for profile in service.get("profiles", ())}
    assert profiles == {"qdrant", "monitoring"}
    page = (ROOT / "corpora" / "guide" / "monitoring.md").read_text()
    for profile in profiles:
        assert f"--profile {profile}" in page


def test_ports_are_of_this_machine_only(compose: dict[str, Any]) -> None:
    """And Qdrant, which asks for no key, has none at all, nor a way out."""
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), (name, port)
    qdrant = compose["services"]["qdrant"]
    assert "ports" not in qdrant
    assert qdrant["networks"] == ["inside"]
    assert compose["networks"]["inside"]["internal"] is True


def test_nobody_is_root_and_nobody_becomes_it(compose: dict[str, Any]) -> None:
    """The service's own user stands in the Dockerfile."""
    for name, service in compose["services"].items():
        if name != "readingroom":
            assert int(service["user"].partition(":")[0]) > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"]["max-size"], f"{name}: its log would fill the disk"


def test_images_are_pinned_and_come_from_where_docker_looks(compose: dict[str, Any]) -> None:
    """A name and a version, no host before it."""
    for name, service in compose["services"].items():
        image, _, version = service["image"].rpartition(":")
        assert re.fullmatch(r"([a-z]+/)?[a-z]+", image), name
        assert re.match(r"v?\d+\.\d+\.\d+", version), name
    pyproject = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', pyproject, re.MULTILINE)
    assert version is not None
    assert compose["services"]["readingroom"]["image"] == f"readingroom:{version[1]}"


def test_what_is_mounted_is_there(compose: dict[str, Any]) -> None:
    """Folders of the checkout, read-only but for the documents, and volumes, secrets and networks that are declared."""
    for name, service in compose["services"].items():
        for mount in service.get("volumes", ()):
            source, target, *mode = mount.split(":")
            assert target.startswith("/"), mount
            if source.startswith("."):
                assert (ROOT / source).is_dir(), (name, source)
                assert mode == ["ro"] or source == "./corpora", (name, source)
            else:
                assert source in compose["volumes"], (name, source)
        for kind in ("networks", "secrets"):
            assert set(service.get(kind, ())) <= set(compose[kind]), name
        assert set(service.get("depends_on", ())) <= set(compose["services"]), name


def test_the_files_that_are_mounted_fit_together(compose: dict[str, Any]) -> None:
    """Names and addresses that one file has of another."""
    services = compose["services"]
    command = services["prometheus"]["command"]
    mounts = {
        target: ROOT / source for source, target, *_ in (m.split(":") for name in services for m in services[name].get("volumes", ()))
    }

    def inside(path: str) -> Path:
        target = max((t for t in mounts if path.startswith(t)), key=len)
        return mounts[target] / path.removeprefix(target).lstrip("/")

    config = next(option.partition("=")[2] for option in command if option.startswith("--config.file="))
    prometheus = parsed(inside(config))
    for file in prometheus["rule_files"]:
        assert inside(config).with_name(file).is_file()
    (job,) = prometheus["scrape_configs"]
    host, _, port = job["static_configs"][0]["targets"][0].partition(":")
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    secret = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in services["prometheus"]["secrets"]
    assert job["job_name"] == "readingroom"

    grafana = services["grafana"]
    (provider,) = parsed(OPS / "grafana/provisioning/dashboards/readingroom.yaml")["providers"]
    assert inside(provider["options"]["path"]).is_dir()
    assert inside(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]) == DASHBOARD
    (source,) = parsed(OPS / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    for service in services.values():
        shared = {network for other in ("readingroom", "prometheus") for network in services[other]["networks"]}
        assert shared & set(service["networks"])


def test_nothing_leaves_with_the_monitoring(compose: dict[str, Any]) -> None:
    """Grafana and Qdrant ask home unless they are told not to; nobody can sign in, so no password is left at its default."""
    grafana = compose["services"]["grafana"]["environment"]
    for name in (
        "ANALYTICS_REPORTING_ENABLED",
        "ANALYTICS_CHECK_FOR_UPDATES",
        "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES",
        "NEWS_NEWS_FEED_ENABLED",
    ):
        assert grafana[f"GF_{name}"] == "false"
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == grafana["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert compose["services"]["qdrant"]["environment"]["QDRANT__TELEMETRY_DISABLED"] == "true"


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("profiles", [(), ("qdrant",), ("monitoring",), ("qdrant", "monitoring")])
def test_docker_compose_takes_it(profiles: tuple[str, ...]) -> None:
    """With the key that it needs, and no other variable."""
    options = [word for profile in profiles for word in ("--profile", profile)]
    env = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "READINGROOM_SERVER__KEY": "k"}
    ran = subprocess.run(["docker-compose", *options, "config", "--quiet"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# The Dockerfile


def instructions(text: str) -> list[tuple[str, str]]:
    """Of a Dockerfile: (instruction, the rest), lines joined, comments left out."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    found = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        found.append((name.upper(), rest.strip()))
    return found


def stages(text: str) -> list[list[tuple[str, str]]]:
    """The instructions of each stage, from its FROM on."""
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions(text):
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


@pytest.fixture
def dockerfile() -> list[list[tuple[str, str]]]:
    """Its stages."""
    return stages((ROOT / "Dockerfile").read_text())


def sent_to_the_builder(path: str) -> bool:
    """By .dockerignore, whose later lines win."""
    sent = True
    for line in filter(None, map(str.strip, (ROOT / ".dockerignore").read_text().splitlines())):
        if not line.startswith("#"):
            again, pattern = line.startswith("!"), line.lstrip("!")
            if fnmatch.fnmatch(path, pattern.replace("**/", "*")) or fnmatch.fnmatch(path, f"{pattern}/*"):
                sent = again
    return sent


def test_only_known_instructions(dockerfile: list[list[tuple[str, str]]]) -> None:
    """A misspelt one fails here, not in somebody's build."""
    known = {"FROM", "RUN", "ARG", "ENV", "WORKDIR", "COPY", "USER", "EXPOSE", "VOLUME", "HEALTHCHECK", "CMD"}
    assert {name for stage in dockerfile for name, _ in stage} <= known
    assert len(dockerfile) == 2, "compilers stay in a stage of their own"


def test_the_image_is_not_root_and_says_so_by_number(dockerfile: list[list[tuple[str, str]]]) -> None:
    """So that Kubernetes' `runAsNonRoot` can tell. After it nothing is installed any more."""
    final = dockerfile[-1]
    at = next(i for i, (name, _) in enumerate(final) if name == "USER")
    assert all(int(part) > 0 for part in final[at][1].split(":"))
    assert not {"RUN", "COPY", "USER"} & {name for name, _ in final[at + 1 :]}


def test_what_is_copied_is_there_and_is_sent(dockerfile: list[list[tuple[str, str]]]) -> None:
    """From the checkout past .dockerignore; from another stage by its name."""
    named = {rest.split(" AS ")[1] for stage in dockerfile for name, rest in stage if name == "FROM" and " AS " in rest}
    copied = set()
    for stage in dockerfile:
        for name, rest in stage:
            if name == "COPY":
                words = shlex.split(rest)
                options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
                *sources, _ = [word for word in words if not word.startswith("--")]
                if "from" in options:
                    assert options["from"] in named
                    continue
                for source in sources:
                    assert (ROOT / source).exists(), source
                    inner = source if (ROOT / source).is_file() else f"{source}/x.py"
                    assert sent_to_the_builder(inner), f"{source} does not pass .dockerignore"
                    copied.add(source)
    assert {"rag", "ingest", "server", "pyproject.toml", "constraints.txt", "models.txt"} <= copied
    for secret in (
        ".git/config",
        ".readingroom/keys.db",
        "readingroom.toml",
        ".venv/bin/python",
        "corpora/private/letter.md",
        "tests/x.py",
    ):
        assert not sent_to_the_builder(secret), secret


def test_both_stages_have_the_same_python(dockerfile: list[list[tuple[str, str]]]) -> None:
    """The environment of one is used in the other; by a version that the project takes."""
    bases = {rest.split(" AS ")[0] for stage in dockerfile for name, rest in stage if name == "FROM"}
    assert bases == {"python:${PYTHON}"}
    arguments = dict(rest.split("=", 1) for name, rest in instructions((ROOT / "Dockerfile").read_text()) if name == "ARG")
    assert re.fullmatch(r"3\.(11|12|13)(\.\d+)?-slim-\w+", arguments["PYTHON"])


def test_llama_cpp_is_built_for_more_than_the_builder(dockerfile: list[list[tuple[str, str]]]) -> None:
    """Not tuned to its CPU, on either architecture: nothing here names one, and AVX-512 is not asked for."""
    (flags,) = [rest for stage in dockerfile for name, rest in stage if name == "ARG" and rest.startswith("CMAKE_ARGS=")]
    assert "-DGGML_NATIVE=OFF" in flags
    assert "AVX512" not in flags
    text = (ROOT / "Dockerfile").read_text()
    assert "--platform=" not in text
    assert not re.search(r"\b(x86_64|amd64|aarch64|arm64)\b", "\n".join(rest for _, rest in instructions(text)))


def test_the_image_starts_the_service_with_settings_that_there_are(dockerfile: list[list[tuple[str, str]]]) -> None:
    """Its command, its variables, its port; and its health is asked without a key."""
    final = dockerfile[-1]
    (command,) = [json.loads(rest) for name, rest in final if name == "CMD"]
    assert command[0] == "readingroom"
    build_parser().parse_args(command[1:])
    variables = dict(word.split("=", 1) for name, rest in final if name == "ENV" for word in shlex.split(rest))
    known_settings(variables)
    assert [rest for name, rest in final if name == "EXPOSE"] == [str(Server().port)]
    (health,) = [rest for name, rest in final if name == "HEALTHCHECK"]
    assert f"127.0.0.1:{Server().port}/health" in health


def test_no_layer_keeps_what_only_the_build_needs(dockerfile: list[list[tuple[str, str]]]) -> None:
    """Lists of packages go in the step that fetched them; no compiler is in the last stage."""
    for stage in dockerfile:
        for name, rest in stage:
            if name == "RUN" and "apt-get install" in rest:
                assert "--no-install-recommends" in rest
                assert "rm -rf /var/lib/apt/lists/*" in rest
    assert not any("build-essential" in rest or "pip install" in rest for _, rest in dockerfile[-1])


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    """But that Debian's packages have no versions, where the image's tag has one, and that pip has a cache, which is the builder's."""
    known = ["--ignore", "DL3008", "--ignore", "DL3042"]
    ran = subprocess.run(["hadolint", *known, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


# Alerts and the dashboard


def test_every_alert_is_complete_and_in_the_guide() -> None:
    """A query that Prometheus would take, how bad it is, a sentence, and a paragraph of what to do; and no paragraph of one that went."""
    groups = parsed(RULES)["groups"]
    names = [rule["alert"] for group in groups for rule in group["rules"]]
    assert len(names) == len(set(names))
    for group in groups:
        for rule in group["rules"]:
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
            promql.parse(rule["expr"])
            assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
            assert rule["annotations"]["summary"].endswith("."), rule["alert"]
            assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s")), rule["alert"]
    page = (ROOT / "corpora" / "guide" / "monitoring.md").read_text()
    assert re.findall(r"^- \*\*(\w+)\*\*: ", page, re.MULTILINE) == names


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(("kind", "file"), [("rules", RULES), ("config", OPS / "prometheus" / "prometheus.yml")])
def test_promtool_agrees(kind: str, file: Path) -> None:
    """Where it is there."""
    syntax = ["--syntax-only"] if kind == "config" else []
    ran = subprocess.run(["promtool", "check", kind, *syntax, str(file)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_dashboard_is_one() -> None:
    """Panels with ids of their own that lie beside each other, each with a query, from a data source that can be chosen."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == f"${{{variable['name']}}}"
            promql.parse(target["expr"])
    titles = [panel["title"] for panel in panels]
    assert len(titles) == len(set(titles))


# Units


@pytest.fixture
def unit() -> configparser.RawConfigParser:
    """The systemd unit; of keys that stand there several times, `Environment`, all values."""

    class Several(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if key in self and isinstance(value, list) and isinstance(self[key], list):
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Several, comment_prefixes=("#", ";"), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(OPS / "systemd" / "readingroom.service")
    return parser


def test_the_unit_starts_the_service(unit: configparser.RawConfigParser) -> None:
    """Not as root, with a command that there is and settings that there are; answers may end before it is killed."""
    service = unit["Service"]
    _, *arguments = service["ExecStart"].split()
    build_parser().parse_args(arguments)
    assert service["User"] not in ("", "root")
    known_settings(dict(line.split("=", 1) for line in service["Environment"].splitlines()))
    assert int(service["TimeoutStopSec"]) > Server().stop_s
    assert service["KillSignal"] == "SIGTERM"
    # The parser takes a network of its own: `ingest/child.py`.
    assert service["RestrictNamespaces"].split() == ["user", "net"]
    assert unit["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a program in place of ours, which is not there."""
    text = (OPS / "systemd" / "readingroom.service").read_text()
    unit = tmp_path / "readingroom.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text, flags=re.MULTILINE))
    ran = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, env={**os.environ, "LANG": "C"})
    assert ran.returncode == 0, ran.stderr
    assert "readingroom.service" not in ran.stderr


def test_the_agent_starts_the_service() -> None:
    """launchd's property list: a command that there is, settings that there are, time for answers to end."""
    agent = plistlib.loads((OPS / "launchd" / "readingroom.plist").read_bytes())
    build_parser().parse_args(agent["ProgramArguments"][1:])
    known_settings(agent["EnvironmentVariables"])
    assert agent["ExitTimeOut"] > Server().stop_s
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["Umask"] == 0o077
    assert agent["StandardErrorPath"] == agent["StandardOutPath"]


def test_the_guide_names_the_files_that_there_are() -> None:
    """Every path of ops/ in the guide exists, and every file of ops/ is reached from the guide or from compose.yaml."""
    guide = "\n".join(page.read_text() for page in (ROOT / "corpora" / "guide").glob("*.md"))
    for path in set(re.findall(r"\bops/[\w./-]+\w", guide)):
        assert (ROOT / path).exists(), path
    compose = (ROOT / "compose.yaml").read_text()
    for file in OPS.rglob("*"):
        if file.is_file():
            name = file.relative_to(ROOT).as_posix()
            assert name in guide or any(f"./{parent}" in compose for parent in map(str, Path(name).parents)), name
