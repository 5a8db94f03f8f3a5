use super::*;
use crate::simulator::switch::RotationClass;

const HOUR: u32 = 3_600;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn pair<'a>(access: &'a str, refresh: &'a str) -> Pair<'a> {
    Pair { access: (access, HOUR), refresh: Some((refresh, 24 * HOUR)) }
}

/// A ledger whose only chain holds the pair `a1`, `r1`, issued at 0.
fn with_first_pair(rotation: Rotation) -> Ledger {
    let mut ledger = Ledger::new(rotation);
    let authorisation = Authorisation {
        account: "1".into(),
        scopes: Vec::new(),
        redirect_uri: None,
        challenge: None,
    };
    ledger.issue_code(authorisation, ("c", 600), at(0));
    let code = ledger.code("c", at(0)).unwrap();
    ledger.redeem(code, pair("a1", "r1"), at(0));
    ledger
}

fn rotate(ledger: &mut Ledger, old: &str, new: (&str, &str), now: Timestamp) {
    let refresh = ledger.refresh(old, now).unwrap();
    ledger.rotate(refresh, pair(new.0, new.1), now);
}

/// A ledger of a class with a grace of a minute, after `r1` brought `a2`, `r2` at 0.
fn after_first_use(class: RotationClass) -> Ledger {
    let mut ledger = with_first_pair(Rotation::of(class, 60));
    rotate(&mut ledger, "r1", ("a2", "r2"), at(0));
    ledger
}

/// The live refresh tokens of the only chain, by what the oracle says.
fn live(ledger: &Ledger, texts: &[&'static str], now: Timestamp) -> Vec<&'static str> {
    let oracle = ledger.oracle(now);
    let chains = oracle.live_refresh_tokens();
    let lives =
        |text: &&str| chains[&1].iter().any(|known| known.id == oracle.of(text).unwrap().id);
    texts.iter().copied().filter(lives).collect()
}

#[test]
fn a_code_works_once_and_until_its_end() {
    let ledger = with_first_pair(Rotation::Stays);
    assert_eq!(ledger.code("c", at(1)), Err(Refusal::Dead(End::Redeemed)));
    assert_eq!(ledger.code("a1", at(1)), Err(Refusal::Unknown));
}

#[test]
fn a_token_is_dead_from_the_instant_its_life_ends() {
    let mut ledger = with_first_pair(Rotation::Stays);
    assert!(ledger.access("a1", at(3_599)).is_ok());
    assert_eq!(ledger.access("a1", at(3_600)), Err(Refusal::Dead(End::Expired)));
}

#[test]
fn a_single_use_token_works_once_and_its_reuse_harms_nothing_else() {
    let mut ledger = with_first_pair(Rotation::SINGLE_USE);
    rotate(&mut ledger, "r1", ("a2", "r2"), at(1));
    assert_eq!(ledger.refresh("r1", at(1)), Err(Refusal::Dead(End::Rotated)));
    assert!(ledger.refresh("r2", at(1)).is_ok());
    assert!(ledger.access("a1", at(1)).is_ok());
}

#[test]
fn a_lenient_token_works_until_something_newer_is_used() {
    let mut ledger = with_first_pair(Rotation::UntilNextUsed);
    rotate(&mut ledger, "r1", ("a2", "r2"), at(1));
    rotate(&mut ledger, "r1", ("a3", "r3"), at(2));
    assert!(ledger.access("a3", at(3)).is_ok());
    for old in ["r1", "r2"] {
        assert_eq!(ledger.refresh(old, at(3)), Err(Refusal::Dead(End::Rotated)), "{old}");
    }
    rotate(&mut ledger, "r3", ("a4", "r4"), at(4));
    rotate(&mut ledger, "r4", ("a5", "r5"), at(5));
    assert_eq!(ledger.refresh("r3", at(5)), Err(Refusal::Dead(End::Rotated)));
}

#[test]
fn the_grace_runs_from_the_first_use_and_reuse_after_it_ends_the_chain() {
    let grace = SignedDuration::from_secs(120);
    let rotation = Rotation::RevokesChain { grace, access_grace: grace };
    let mut ledger = with_first_pair(rotation);
    rotate(&mut ledger, "r1", ("a2", "r2"), at(0));
    rotate(&mut ledger, "r1", ("a3", "r3"), at(119));
    assert!(ledger.access("a1", at(119)).is_ok());
    assert_eq!(ledger.access("a1", at(120)), Err(Refusal::Dead(End::Rotated)));
    assert!(ledger.refresh("r3", at(120)).is_ok());
    assert_eq!(ledger.refresh("r1", at(120)), Err(Refusal::Dead(End::Rotated)));
    assert_eq!(ledger.refresh("r3", at(120)), Err(Refusal::Dead(End::RefreshReused)));
    assert_eq!(ledger.access("a3", at(120)), Err(Refusal::Dead(End::RefreshReused)));
}

#[test]
fn the_oracle_counts_every_presentation_known_or_not() {
    let mut ledger = with_first_pair(Rotation::SINGLE_USE);
    ledger.presented("r1", Endpoint::Token);
    ledger.presented("r1", Endpoint::Token);
    ledger.presented("never issued", Endpoint::Account);
    let oracle = ledger.oracle(at(0));
    let known = oracle.of("r1").unwrap();
    assert_eq!((known.presented[&Endpoint::Token], known.generation), (2, 1));
    assert_eq!(oracle.unknown[&Endpoint::Account], 1);
}

#[test]
fn without_rotation_an_access_token_comes_alone_and_the_refresh_token_lives_on() {
    let mut ledger = with_first_pair(Rotation::of(RotationClass::None, 60));
    for (access, seconds) in [("a2", 100), ("a3", 86_399)] {
        let refresh = ledger.refresh("r1", at(seconds)).unwrap();
        let answer = ledger.rotate(refresh, pair(access, "unused"), at(seconds));
        assert_eq!((answer.access, answer.refresh), ((access, HOUR), None));
        assert!(ledger.access(access, at(seconds)).is_ok());
        assert!(ledger.issued_together(access, refresh));
    }
    assert_eq!(ledger.refresh("unused", at(86_399)), Err(Refusal::Unknown));
    assert_eq!(ledger.refresh("r1", at(86_400)), Err(Refusal::Dead(End::Expired)));
}

#[test]
fn within_the_grace_the_same_successor_comes_again_with_what_remains_of_its_lives() {
    let mut ledger = after_first_use(RotationClass::GraceSameSuccessor);
    rotate(&mut ledger, "r2", ("a3", "r3"), at(10));
    let known = ledger.oracle(at(59)).known.len();
    let refresh = ledger.refresh("r1", at(59)).unwrap();
    let answer = ledger.rotate(refresh, pair("unused", "unused"), at(59));
    assert_eq!(answer.access, ("a2", HOUR - 59));
    assert_eq!(answer.refresh, Some(("r2", 24 * HOUR - 59)));
    assert_eq!(ledger.oracle(at(59)).known.len(), known);

    assert_eq!(live(&ledger, &["r1", "r2", "r3"], at(59)), ["r1", "r2", "r3"]);
    assert_eq!(live(&ledger, &["r1", "r2", "r3"], at(60)), ["r2", "r3"]);
    assert_eq!(ledger.refresh("r1", at(60)), Err(Refusal::Dead(End::Rotated)));
    assert_eq!(live(&ledger, &["r1", "r2", "r3"], at(70)), ["r3"]);
}

#[test]
fn the_texts_of_a_successor_are_forgotten_after_the_grace() {
    let mut ledger = after_first_use(RotationClass::GraceSameSuccessor);
    rotate(&mut ledger, "r2", ("a3", "r3"), at(59));
    assert_eq!(ledger.successors.len(), 2);
    rotate(&mut ledger, "r3", ("a4", "r4"), at(60));
    assert_eq!(ledger.successors.len(), 2);
}

#[test]
fn within_the_grace_every_use_brings_a_successor_beside_the_others() {
    let mut ledger = after_first_use(RotationClass::GraceNewSuccessors);
    rotate(&mut ledger, "r1", ("a3", "r3"), at(30));
    rotate(&mut ledger, "r1", ("a4", "r4"), at(59));
    let all = ["r1", "r2", "r3", "r4"];
    assert_eq!(live(&ledger, &all, at(59)), all);
    assert_eq!(ledger.refresh("r1", at(60)), Err(Refusal::Dead(End::Rotated)));
    assert_eq!(live(&ledger, &all, at(60)), ["r2", "r3", "r4"]);
    for access in ["a1", "a2", "a3", "a4"] {
        assert!(ledger.access(access, at(60)).is_ok(), "{access}");
    }
}

#[test]
fn within_the_grace_a_newer_successor_ends_everything_issued_since_the_first_use() {
    let mut ledger = after_first_use(RotationClass::GraceNewestLives);
    rotate(&mut ledger, "r2", ("a3", "r3"), at(10));
    let all = ["r1", "r2", "r3", "r4"];
    assert_eq!(live(&ledger, &all[..3], at(10)), ["r1", "r2", "r3"]);
    rotate(&mut ledger, "r1", ("a4", "r4"), at(59));
    assert_eq!(live(&ledger, &all, at(59)), ["r1", "r4"]);
    for old in ["a2", "a3"] {
        assert_eq!(ledger.access(old, at(59)), Err(Refusal::Dead(End::Rotated)), "{old}");
    }
    assert!(ledger.access("a1", at(59)).is_ok() && ledger.access("a4", at(59)).is_ok());

    assert_eq!(ledger.refresh("r2", at(60)), Err(Refusal::Dead(End::Rotated)));
    assert_eq!(ledger.refresh("r1", at(60)), Err(Refusal::Dead(End::Rotated)));
    assert_eq!(live(&ledger, &all, at(60)), ["r4"], "reuse is merely refused");
}

#[test]
fn in_a_single_use_class_reuse_is_merely_refused() {
    let mut ledger = after_first_use(RotationClass::SingleUse);
    rotate(&mut ledger, "r2", ("a3", "r3"), at(0));
    for old in ["r1", "r2"] {
        assert_eq!(ledger.refresh(old, at(0)), Err(Refusal::Dead(End::Rotated)), "{old}");
    }
    assert_eq!(live(&ledger, &["r1", "r2", "r3"], at(0)), ["r3"]);
}

#[test]
fn in_a_family_class_reuse_of_any_ancestor_ends_every_token_of_the_chain() {
    for reused in ["r1", "r2"] {
        let mut ledger = after_first_use(RotationClass::SingleUseFamily);
        rotate(&mut ledger, "r2", ("a3", "r3"), at(0));
        assert_eq!(live(&ledger, &["r1", "r2", "r3"], at(1)), ["r3"]);
        for access in ["a1", "a2", "a3"] {
            assert!(ledger.access(access, at(1)).is_ok(), "{access}");
        }
        assert_eq!(ledger.refresh(reused, at(1)), Err(Refusal::Dead(End::Rotated)));
        assert!(live(&ledger, &["r1", "r2", "r3"], at(1)).is_empty());
        let ended = Err(Refusal::Dead(End::RefreshReused));
        assert_eq!(ledger.refresh("r3", at(1)), ended);
        for access in ["a1", "a2", "a3"] {
            assert_eq!(ledger.access(access, at(1)), ended, "{access}");
        }
    }
}

#[test]
fn a_reused_family_harms_no_other_authorisation_of_the_account() {
    let mut ledger = after_first_use(RotationClass::SingleUseFamily);
    let again = ledger.chains[0].authorisation.as_ref().clone();
    ledger.issue_directly(again, pair("b1", "s1"), at(1));
    assert!(ledger.refresh("r1", at(2)).is_err());
    assert!(ledger.refresh("r2", at(2)).is_err());
    assert!(ledger.refresh("s1", at(2)).is_ok());
}

#[test]
fn the_oracle_says_of_every_chain_what_could_save_it() {
    let mut ledger = after_first_use(RotationClass::SingleUseFamily);
    let again = ledger.chains[0].authorisation.as_ref().clone();
    ledger.issue_directly(again.clone(), pair("b1", "s1"), at(1));
    ledger.issue_directly(again, Pair { refresh: None, ..pair("c1", "unused") }, at(1));
    ledger.presented("a1", Endpoint::Account);
    assert_eq!(ledger.oracle(at(1)).most_presentations(), 0);
    for text in ["r1", "s1", "r1", "never issued"] {
        ledger.presented(text, Endpoint::Token);
    }
    assert!(ledger.refresh("r1", at(1)).is_err());

    let oracle = ledger.oracle(at(1));
    let chains = oracle.live_refresh_tokens();
    let counts: Vec<_> = chains.iter().map(|(chain, live)| (*chain, live.len())).collect();
    assert_eq!(counts, [(1, 0), (2, 1)]);
    assert_eq!(chains[&2][0].id, oracle.of("s1").unwrap().id);
    assert_eq!(oracle.most_presentations(), 2);
}
