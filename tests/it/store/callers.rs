use std::{collections::BTreeSet, time::Duration};

use token_broker::{
    domain::caller::{Holder, Operator, Service, StoredKey, Verb, new_key},
    store::StoreError,
};

use crate::support::database::{TestDatabase, apply, on_both_engines};

fn service(db: &TestDatabase, name: &str) -> Service {
    Service {
        name: name.parse().unwrap(),
        connections: vec!["avito-*".parse().unwrap(), "amocrm".parse().unwrap()],
        verbs: BTreeSet::from([Verb::Token, Verb::Consent]),
        created_at: db.clock.now(),
    }
}

fn key(db: &TestDatabase, holder: Holder, owner: &str) -> StoredKey {
    new_key(holder, owner.parse().unwrap(), db.clock.now(), None).1
}

#[apply(on_both_engines!)]
async fn a_service_and_its_key_read_back(db: TestDatabase) {
    let billing = service(&db, "billing");
    let first = key(&db, Holder::Service, "billing");
    db.store.create_service(&billing, &first).await.unwrap();
    let read = db.store.services().await.unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", [&billing]));
    assert_eq!(format!("{:?}", db.store.keys().await.unwrap()), format!("{:?}", [first]));

    let another = key(&db, Holder::Service, "billing");
    let error = db.store.create_service(&billing, &another).await.unwrap_err();
    assert!(matches!(error, StoreError::NameTaken(_)), "{error:?}");
    assert_eq!(db.store.keys().await.unwrap().len(), 1, "no key without its service");
}

#[apply(on_both_engines!)]
async fn an_operator_and_their_key_read_back(db: TestDatabase) {
    let alice = Operator { name: "alice".parse().unwrap(), created_at: db.clock.now() };
    let first = key(&db, Holder::Operator, "alice");
    db.store.create_operator(&alice, &first).await.unwrap();
    let read = db.store.operators().await.unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", [&alice]));
    assert_eq!(format!("{:?}", db.store.keys().await.unwrap()), format!("{:?}", [first]));

    let another = key(&db, Holder::Operator, "alice");
    let error = db.store.create_operator(&alice, &another).await.unwrap_err();
    assert!(matches!(error, StoreError::NameTaken(_)), "{error:?}");
    assert_eq!(db.store.keys().await.unwrap().len(), 1);
}

#[apply(on_both_engines!)]
async fn keys_can_be_rotated(db: TestDatabase) {
    let first = key(&db, Holder::Service, "billing");
    db.store.create_service(&service(&db, "billing"), &first).await.unwrap();
    let second = StoredKey {
        expires_at: Some(db.clock.now() + Duration::from_hours(1)),
        ..key(&db, Holder::Service, "billing")
    };
    assert!(db.store.add_key(&second, 2).await.unwrap());
    assert_eq!(db.store.keys().await.unwrap().len(), 2);
    assert!(db.store.delete_key(&first.id).await.unwrap());
    assert!(!db.store.delete_key(&first.id).await.unwrap());
    let read = db.store.keys().await.unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", [second]));
    db.clock.advance(Duration::from_hours(1));
    assert!(db.store.keys().await.unwrap().is_empty(), "it has ended");
}

#[apply(on_both_engines!)]
async fn a_deleted_service_takes_its_keys_along(db: TestDatabase) {
    let (billing, shipping) = (service(&db, "billing"), service(&db, "shipping"));
    let theirs = key(&db, Holder::Service, "shipping");
    db.store.create_service(&billing, &key(&db, Holder::Service, "billing")).await.unwrap();
    db.store.create_service(&shipping, &theirs).await.unwrap();
    // An operator of the same name is somebody else.
    let operator = Operator { name: "billing".parse().unwrap(), created_at: db.clock.now() };
    let operators = key(&db, Holder::Operator, "billing");
    db.store.create_operator(&operator, &operators).await.unwrap();

    assert!(db.store.delete_service(&"billing".parse().unwrap()).await.unwrap());
    assert!(!db.store.delete_service(&"billing".parse().unwrap()).await.unwrap());
    let left: Vec<_> = db.store.keys().await.unwrap().into_iter().map(|key| key.id).collect();
    assert_eq!(left, [operators.id, theirs.id]);
    assert!(!db.store.add_key(&key(&db, Holder::Service, "billing"), 2).await.unwrap());
    assert!(db.store.add_key(&key(&db, Holder::Operator, "billing"), 2).await.unwrap());
}
