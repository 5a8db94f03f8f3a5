//! `services`: internal callers and their keys, in a running broker.

use serde_json::{Value, json};

use super::{
    CliError,
    args::{ServiceAction, Services},
    running::ApiClient,
    say,
    table::{say_json, table, text},
};

pub(crate) async fn services(args: &Services) -> Result<(), CliError> {
    match &args.action {
        ServiceAction::List(list) => {
            let broker = ApiClient::of(&list.remote)?;
            let answer = broker.get(&["v1", "services"], &[]).await?;
            let services = answer.list("services")?;
            if list.json {
                return say_json(&answer.json);
            }
            if services.is_empty() {
                return say("no services yet: `token-broker services create NAME` makes one");
            }
            let rows = services.iter().map(|service| {
                let keys: Vec<String> = service["keys"]
                    .as_array()
                    .map(|keys| keys.iter().map(|key| text(key, "id").to_owned()).collect())
                    .unwrap_or_default();
                [
                    text(service, "name").to_owned(),
                    words(&service["connections"]),
                    words(&service["verbs"]),
                    keys.join(" "),
                ]
            });
            table(["SERVICE", "CONNECTIONS", "VERBS", "KEY IDS"], rows)
        }
        ServiceAction::Create { name, connections, verbs, expires_at, remote } => {
            let mut body = json!({ "name": name, "connections": connections });
            if !verbs.is_empty() {
                body["verbs"] = json!(verbs);
            }
            if let Some(end) = expires_at {
                body["expires_at"] = json!(end);
            }
            let broker = ApiClient::of(remote)?;
            let answer = broker.post(&["v1", "services"], &body).await?;
            say(answer.text("key")?)
        }
        ServiceAction::AddKey { name, remote } => {
            let path = ["v1", "services", name.as_str(), "keys"];
            let broker = ApiClient::of(remote)?;
            let answer = broker.post(&path, &json!({})).await?;
            say(answer.text("key")?)
        }
        ServiceAction::DeleteKey { name, key, remote } => {
            let path = ["v1", "services", name.as_str(), "keys", key.as_str()];
            ApiClient::of(remote)?.delete(&path).await?;
            say(&format!("key {key} of service {name} has ended"))
        }
        ServiceAction::Delete { name, remote } => {
            let path = ["v1", "services", name.as_str()];
            ApiClient::of(remote)?.delete(&path).await?;
            say(&format!("service {name} is deleted"))
        }
    }
}

fn words(value: &Value) -> String {
    let words = value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect());
    words.map(|words: Vec<_>| words.join(" ")).unwrap_or_default()
}
