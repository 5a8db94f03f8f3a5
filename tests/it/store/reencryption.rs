use token_broker::{
    seal::{Keyring, Sealed},
    store::{Commit, SEALED_COLUMNS, SealedColumn, SealedCount},
};

use super::{grant, pending, stored};
use crate::support::database::{TestDatabase, apply, on_both_engines};

fn counted(table: &str, key: &str, values: i64) -> SealedCount {
    SealedCount { table: table.to_owned(), key: key.to_owned(), values }
}

fn column(table: &str) -> &'static SealedColumn {
    SEALED_COLUMNS.iter().find(|column| column.table == table).unwrap()
}

#[apply(on_both_engines!)]
async fn sealed_values_are_counted_by_table_and_key(db: TestDatabase) {
    assert_eq!(db.store.count_sealed().await.unwrap(), []);
    for name in ["one", "two", "three"] {
        let id = stored(&db, name).await.id;
        let grant = grant(&db, 1);
        assert!(
            db.store
                .durable()
                .commit_grant(&Commit::refreshed(id, &grant, None, None))
                .await
                .unwrap()
        );
        db.store.durable().put_pending(id, &pending(&db, name)).await.unwrap();
    }
    db.store.put_meta_if_absent("sealing_check", "v1.K1.check").await.unwrap();
    db.store.put_meta_if_absent("another", "v1.k1.no-secret").await.unwrap();
    db.execute(
        "UPDATE grants SET access = 'v1.Other9.x.y' WHERE connection_id =
            (SELECT id FROM connections WHERE name = 'one');
         UPDATE grants SET access = 'v1.', refresh = 'nothing' WHERE connection_id =
            (SELECT id FROM connections WHERE name = 'two')",
    )
    .await;
    let mut counts = db.store.count_sealed().await.unwrap();
    counts.sort_by(|a, b| (&a.table, &a.key).cmp(&(&b.table, &b.key)));
    let expected = [
        counted("grants", "", 2),
        counted("grants", "Other9", 1),
        counted("grants", "k1", 3),
        counted("meta", "K1", 1),
        counted("pending_grants", "k1", 6),
    ];
    assert_eq!(counts, expected);
    // What is read page by page is read once, and what the key has sealed is passed over.
    let (mut behind, mut found) = (None, 0);
    loop {
        let page = db.store.sealed_otherwise(column("grants"), "k1", behind.as_ref(), 1).await;
        let Some(value) = page.unwrap().pop() else { break };
        (behind, found) = (Some(value), found + 1);
    }
    assert_eq!(found, 2);
}

#[apply(on_both_engines!)]
async fn a_value_that_changed_meanwhile_is_not_exchanged(db: TestDatabase) {
    let id = stored(&db, "one").await.id;
    let commit = async |generation| {
        let grant = grant(&db, generation);
        assert!(
            db.store
                .durable()
                .commit_grant(&Commit::refreshed(id, &grant, None, None))
                .await
                .unwrap()
        );
    };
    let record = async || db.store.record_by_id(id).await.unwrap().unwrap();
    commit(1).await;
    let access = column("grants");
    let seen = db.store.sealed_otherwise(access, "k2", None, 10).await.unwrap();
    assert_eq!((seen.len(), seen[0].context().generation), (1, 1));
    let anew = Keyring::generate().seal(seen[0].context(), &"token".into());
    let exchange = [(seen[0].clone(), anew.clone())];
    let before = record().await;
    assert_eq!(db.store.reseal(access, &exchange).await.unwrap(), 1);
    let after = record().await;
    assert_eq!(after.grant.as_ref().unwrap().access, anew);
    assert_eq!(after.grant.unwrap().refresh, before.grant.unwrap().refresh);
    assert_eq!(
        (after.changed_at, after.connection.state),
        (before.changed_at, before.connection.state)
    );
    // A refresh stores its grant over the exchange, and the exchange stores nothing over a refresh.
    commit(2).await;
    let late = (seen[0].clone(), Sealed::from_stored("late".to_owned()));
    assert_eq!(db.store.reseal(access, &[late]).await.unwrap(), 0);
    assert_eq!(record().await.grant.unwrap().access, grant(&db, 2).access);
}
