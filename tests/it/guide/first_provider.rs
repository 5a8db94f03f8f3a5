//! The steps of the README to the first provider, pasted into a shell one after the other.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::page;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A line of the shell that waits until a command succeeds, for a minute at the most.
fn wait_for(command: &str) -> String {
    format!("timeout 60 bash -c 'until {command}; do sleep 0.1; done'\n")
}

#[test]
fn the_steps_to_the_first_provider_work_as_written() {
    let home = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_token-broker")).parent().unwrap();
    let (public, internal) = (free_port(), free_port());
    let readme = page("README.md");
    let steps = readme.blocks_in("sh").skip(2).map(|block| block.text.as_str());
    let mut script = "trap 'kill $(jobs -p); wait' EXIT\n".to_owned();
    for step in steps {
        script.push_str(step);
    }
    for (written, here) in [
        ("$PWD/target/release", program.to_str().unwrap().to_owned()),
        ("127.0.0.1:8081", format!("127.0.0.1:{internal}")),
        // A second is enough for a person's machine, but not for one that runs all the tests.
        (">> broker.toml &\nsleep 1\n", {
            format!(">> broker.toml &\n{}", wait_for("grep -q kommo.localhost broker.toml"))
        }),
        ("2> broker.log &\nsleep 1\n", {
            format!("2> broker.log &\n{}", wait_for("token-broker healthcheck >/dev/null 2>&1"))
        }),
    ] {
        assert!(script.contains(written), "{written} is in the README");
        script = script.replace(written, &here);
    }
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &script]).env_clear().stdin(Stdio::null());
    shell.env("HOME", home.path()).env("PATH", std::env::var_os("PATH").unwrap());
    shell.current_dir(home.path());
    for (variable, value) in [
        ("TOKEN_BROKER_URL", format!("http://127.0.0.1:{internal}")),
        ("TOKEN_BROKER__PUBLIC_LISTEN", format!("127.0.0.1:{public}")),
        ("TOKEN_BROKER__PUBLIC_URL", format!("http://127.0.0.1:{public}")),
        ("TOKEN_BROKER__INTERNAL_LISTEN", format!("127.0.0.1:{internal}")),
        ("TOKEN_BROKER__INTERNAL_URL", format!("http://127.0.0.1:{internal}")),
    ] {
        shell.env(variable, value);
    }
    for provider in ["ADMITAD", "AMOCRM", "AVITO", "DIVAR", "KOMMO"] {
        shell.env(format!("TOKEN_BROKER__SIMULATORS__{provider}__PORT"), "0");
    }
    let output = shell.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("ok      Avito: "), "{said}");
    assert!(!said.contains("FAILED"), "{said}");
    let answers = said.replace("}{", "}\n{").replace("}http", "}\nhttp");
    let answers: Vec<Value> =
        answers.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(answers[0]["state"], "active", "{said}");
    assert_eq!(answers[1]["token_type"], "Bearer", "{said}");
    assert!(said.contains(&format!("http://127.0.0.1:{public}/connect/")), "{said}");
    let listed = said.lines().find(|line| line.starts_with("amocrm-shop "));
    assert!(listed.is_some_and(|line| line.contains("pending_consent")), "{said}");
}
