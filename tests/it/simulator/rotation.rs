use std::time::Duration;

use token_broker::simulator::{Simulated, settings::RotationClass};

use super::{Answer, SimulatedProvider};

/// Each class: what a second use within the grace brings, and which of the refresh tokens of the
/// first pair, of its first use and of its second use live then, and after a use beyond the grace.
const CLASSES: [(RotationClass, &str, &[&str], &[&str]); 6] = [
    (RotationClass::None, "an access token", &["first"], &["first"]),
    (
        RotationClass::GraceSameSuccessor,
        "the same pair",
        &["first", "second", "again"],
        &["second", "again"],
    ),
    (
        RotationClass::GraceNewSuccessors,
        "a new pair",
        &["first", "second", "again"],
        &["second", "again"],
    ),
    (RotationClass::GraceNewestLives, "a new pair", &["first", "again"], &["again"]),
    (RotationClass::SingleUse, "a refusal", &["second"], &["second"]),
    (RotationClass::SingleUseFamily, "a refusal", &[], &[]),
];

async fn of_class(class: RotationClass) -> SimulatedProvider {
    SimulatedProvider::new(Simulated::Admitad, |settings| {
        for (rotation, grace) in [
            (&mut settings.admitad.rotation, &mut settings.admitad.rotation_grace),
            (&mut settings.amocrm.rotation, &mut settings.amocrm.rotation_grace),
            (&mut settings.avito.rotation, &mut settings.avito.rotation_grace),
            (&mut settings.divar.rotation, &mut settings.divar.rotation_grace),
            (&mut settings.kommo.rotation, &mut settings.kommo.rotation_grace),
        ] {
            (*rotation, *grace) = (Some(class), 40);
        }
    })
    .await
}

fn text(answer: &Answer, name: &str) -> Option<String> {
    answer.json()[name].as_str().map(str::to_owned)
}

/// What an answer brought that came after `second`.
fn brought(again: &Answer, second: &Answer) -> &'static str {
    let same = |name| text(again, name) == text(second, name);
    match (again.status, text(again, "refresh_token")) {
        (200, None) => "an access token",
        (200, Some(_)) if same("refresh_token") && same("access_token") => "the same pair",
        (200, Some(_)) => "a new pair",
        _ => "a refusal",
    }
}

impl SimulatedProvider {
    async fn grant(&self) -> Answer {
        match self.which {
            Simulated::Admitad => self.admitad_grant().await,
            Simulated::Amocrm | Simulated::Kommo => self.amocrm_grant().await,
            Simulated::Avito => self.avito_grant().await,
            Simulated::Divar => self.divar_grant().await,
        }
    }

    async fn refresh(&self, access: &str, refresh: &str) -> Answer {
        match self.which {
            Simulated::Admitad => self.admitad_refresh(refresh).await,
            Simulated::Amocrm | Simulated::Kommo => self.amocrm_refresh(refresh).await,
            Simulated::Avito => self.avito_refresh(refresh).await,
            Simulated::Divar => self.divar_refresh(&(access.into(), refresh.into())).await,
        }
    }

    /// Those of the answers whose refresh token lives.
    fn live(&self, answers: &[(&'static str, &Answer)]) -> Vec<&'static str> {
        let oracle = self.simulator().oracle();
        let live = &oracle.live_refresh_tokens()[&1];
        let lives = |answer| {
            let known = text(answer, "refresh_token").and_then(|text| oracle.of(&text));
            known.is_some_and(|known| live.iter().any(|one| one.id == known.id))
        };
        answers.iter().filter(|(_, answer)| lives(answer)).map(|(name, _)| *name).collect()
    }
}

#[tokio::test]
async fn any_token_endpoint_can_be_any_class() {
    for (class, brings, within, after) in CLASSES {
        let mut provider = of_class(class).await;
        for which in Simulated::ALL {
            provider.which = which;
            let about = format!("{which}, {class:?}");
            let first = provider.grant().await;
            let (access, refresh) = (first.token("access_token"), first.token("refresh_token"));
            let second = provider.refresh(&access, &refresh).await;
            assert_eq!(second.status, 200, "{about}: {}", second.text);
            provider.simulator().advance_clock(Duration::from_secs(20));
            let again = provider.refresh(&access, &refresh).await;
            assert_eq!(brought(&again, &second), brings, "{about}: {}", again.text);
            let answers = [("first", &first), ("second", &second), ("again", &again)];
            assert_eq!(provider.live(&answers), within, "{about}");

            provider.simulator().advance_clock(Duration::from_secs(20));
            let late = provider.refresh(&access, &refresh).await;
            assert_eq!(late.status == 200, class == RotationClass::None, "{about}: {}", late.text);
            assert_eq!(provider.live(&answers), after, "{about}");
            assert_eq!(provider.simulator().oracle().most_presentations(), 3, "{about}");
        }
    }
}

#[tokio::test]
async fn the_same_pair_says_what_remains_of_its_life() {
    let mut provider = of_class(RotationClass::GraceSameSuccessor).await;
    for which in Simulated::ALL {
        provider.which = which;
        let first = provider.grant().await;
        let (access, refresh) = (first.token("access_token"), first.token("refresh_token"));
        let life = first.json()["expires_in"].as_u64().unwrap();
        let expires_in = async || {
            let answer = provider.refresh(&access, &refresh).await;
            answer.json()["expires_in"].as_u64().unwrap()
        };
        assert_eq!(expires_in().await, life, "{which}");
        provider.simulator().advance_clock(Duration::from_secs(20));
        let rest = expires_in().await;
        assert!((life - 40..=life - 20).contains(&rest), "{which}: {rest} of {life}");
    }
}

#[tokio::test]
async fn without_rotation_divar_takes_every_access_token_that_the_refresh_token_brought() {
    let mut provider = of_class(RotationClass::None).await;
    provider.which = Simulated::Divar;
    let first = provider.grant().await;
    let refresh = first.token("refresh_token");
    let mut access = first.token("access_token");
    for _ in 0..3 {
        let answer = provider.refresh(&access, &refresh).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        access = answer.token("access_token");
        assert_eq!(provider.divar_user(&access).await.status, 200);
    }
}
