//! Every order in which two replicas can claim, send, hear and commit, with a lease that ends under
//! a live holder, a process that dies and a packet that gets lost. Nothing here is a copy: each
//! order is walked by two real brokers on one store, against a simulated provider whose oracle
//! knows what lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;
use token_broker::domain::grant::{GrantSlot, SealedGrant};
use token_broker::{
    audit::{Actor, Trail},
    broker::{Broker, LastSeen, Parts},
    clock::Clock,
    domain::{
        connection::{Account, Connection, ConnectionId, GrantType, State, Vars},
        record::Record,
        slug::Slug,
    },
    failpoint::{Failpoints, Point},
    provider::{Outbound, client::Client},
    seal::{Keyring, SealContext, secret::Digest},
    simulator::{Fault, Kind, Simulated, SimulatorSettings, settings::RotationClass},
    spool::Spool,
    store::Commit,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

use crate::{
    report::{self, Row},
    support::{database::TestDatabase, deployment::Deployment, http::client, person::Person},
};

/// The points at which the order of two replicas matters.
const STEPS: [Point; 3] = [Point::Claimed, Point::Received, Point::Spooled];

/// Longer than any lease.
const LEASE_AND_MORE: Duration = Duration::from_secs(100);

/// The number of faults in one walk.
#[derive(Clone, Copy, Debug)]
struct Mishaps {
    crashes: u32,
    lost_packets: u32,
}

/// One thing that can happen next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Act {
    /// A replica goes on to where its order matters again.
    Step(usize),
    /// As [`Act::Step`], and its request never reaches the provider.
    LoseRequest(usize),
    /// As [`Act::Step`], and the provider's answer never arrives.
    LoseAnswer(usize),
    /// A replica is killed where it stands.
    Crash(usize),
    /// The lease that stands runs out.
    LeaseEnds,
}

/// All that the walks of one rotation class share.
struct Shared {
    deployment: Deployment,
    keyring: Keyring,
    outbound: Outbound,
    clients: BTreeMap<Slug, Arc<Client>>,
    tasks: TaskTracker,
}

impl Shared {
    async fn new(class: RotationClass) -> Self {
        let mut simulated = SimulatorSettings::default();
        simulated.avito.rotation = Some(class);
        simulated.avito.rotation_grace = 10 * 86_400;
        let database = TestDatabase::sqlite().await;
        let deployment = Deployment::new(database, simulated, &settings(class)).await;
        Self {
            keyring: Keyring::read(&deployment.key_file()).unwrap(),
            outbound: Outbound::new(deployment.clock.clone(), Failpoints::default()).unwrap(),
            clients: deployment.load().clients,
            deployment,
            tasks: TaskTracker::new(),
        }
    }

    /// Every refresh token of the newest authorisation, in order of issue, and whether it lives.
    fn refresh_tokens(&self) -> Vec<(String, bool)> {
        let known = self.deployment.simulator(Simulated::Avito).oracle().known;
        let chain = known.iter().map(|known| known.chain).max().unwrap_or_default();
        let ours = known.iter().filter(|one| one.chain == chain && one.kind == Kind::Refresh);
        ours.map(|one| (one.fingerprint.clone(), one.alive)).collect()
    }

    /// A connection that holds a first grant of the provider's and is due.
    async fn connection(&self) -> ConnectionId {
        let now = self.deployment.clock.now();
        let connection = Connection {
            id: ConnectionId::new(),
            name: "avito-shop".parse().unwrap(),
            client: "avito".parse().unwrap(),
            grant_type: GrantType::AuthorizationCode,
            scopes: Vec::new(),
            state: State::Active,
            reason: None,
            account: Some(Account { id: "1".to_owned(), name: None, aliases: Vec::new() }),
            expected_account: None,
            vars: Vars::new(),
            created_at: now,
            refresh_at: Some(now),
            failures: 0,
            last_error: None,
        };
        let store = &self.deployment.database.store;
        store.create(&connection).await.unwrap();
        let answer = self.consent().await;
        let id = connection.id.to_string();
        let slot = GrantSlot::Live { generation: 1 };
        let seal = |context: SealContext<'_>, name: &str| {
            let secret = SecretString::from(answer[name].as_str().unwrap());
            let sealed = self.keyring.seal(context, &secret);
            (sealed, Digest::of(&secret))
        };
        let (access, _) = seal(slot.access(&id), "access_token");
        let (refresh, refresh_hash) = seal(slot.refresh(&id), "refresh_token");
        let grant = SealedGrant {
            slot,
            access,
            refresh: Some(refresh),
            scopes: Vec::new(),
            received_at: now,
            expires_at: now + Duration::from_hours(24),
            origin: None,
        };
        let commit = Commit::refreshed(connection.id, &grant, Some(now), Some(refresh_hash));
        assert!(store.durable().commit_grant(&commit).await.unwrap());
        connection.id
    }

    /// A person consents at the provider, and the code is exchanged.
    async fn consent(&self) -> Value {
        let application = &self.deployment.simulators.applications()["avito"];
        let port = self.deployment.simulator(Simulated::Avito).port();
        let id = &application.client_id;
        let page = format!(
            "http://localhost:{port}/oauth?response_type=code&client_id={id}&scope=user:read&state=s"
        );
        let callback: url::Url = Person::alone().decide(&page, "allow").await.parse().unwrap();
        let code = callback.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", id),
            ("client_secret", "simulated-avito-secret"),
            ("code", &code),
        ];
        let url = format!("http://127.0.0.1:{port}/token");
        let answer = client().post(url).form(&form).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    async fn record(&self, id: ConnectionId) -> Record {
        self.deployment.database.store.record_by_id(id).await.unwrap().unwrap()
    }

    /// The digest of the refresh token that the connection holds, as the oracle names it.
    fn stored(&self, record: &Record) -> String {
        let grant = record.grant.as_ref().unwrap();
        let id = record.connection.id.to_string();
        let refresh =
            self.keyring.open(grant.slot.refresh(&id), grant.refresh.as_ref().unwrap()).unwrap();
        Digest::of(&refresh).fingerprint()
    }
}

/// The settings for a class.
fn settings(class: RotationClass) -> String {
    let tokens = match class {
        RotationClass::None => "rotation = 'none'",
        RotationClass::SingleUse => "rotation = 'single_use'",
        RotationClass::SingleUseFamily => "rotation = 'single_use_family'",
        _ => "rotation = 'grace', grace = '10d'",
    };
    format!(
        "[providers.profiles.avito]
        tokens = {{ {tokens} }}
        pace = {{ per_second = 1_000_000, burst = 1_000, in_flight = 8 }}"
    )
}

/// A replica that is walked step by step.
struct Replica {
    broker: Arc<Broker>,
    spool: TempDir,
    run: Option<JoinHandle<usize>>,
    stands: Option<(Point, oneshot::Sender<()>)>,
    claims: u32,
    dead: bool,
    /// The newest refresh token of the provider's when this replica heard an answer.
    heard: Option<String>,
}

type Reached = (usize, Point, oneshot::Sender<()>);

/// One order, as it is walked.
struct Walk<'s> {
    shared: &'s Shared,
    id: ConnectionId,
    replicas: [Replica; 2],
    reached: mpsc::UnboundedReceiver<Reached>,
    left: Mishaps,
    lease_ended: bool,
    /// The replica that holds the claim, unless its lease has ended.
    holder: Option<usize>,
    /// The refresh token that it begins with.
    first: String,
    /// The refresh tokens that reached the disk of any of us.
    known: BTreeSet<String>,
}

async fn start(
    shared: &Shared,
    number: usize,
    spool: &TempDir,
    failpoints: Failpoints,
) -> Arc<Broker> {
    let clock = shared.deployment.clock.clone();
    Broker::start(Parts {
        store: shared.deployment.database.store.clone(),
        keyring: Keyring::read(&shared.deployment.key_file()).unwrap(),
        outbound: shared.outbound.clone(),
        spool: Spool::open(spool.path()).unwrap(),
        watermark: LastSeen::read(spool.path()).unwrap(),
        replica: format!("replica-{number}"),
        trail: Trail::open(spool.path(), clock.clone()).unwrap(),
        keep_events: Duration::from_hours(24),
        clock,
        clients: shared.clients.clone(),
        public_url: "http://127.0.0.1:9".parse().unwrap(),
        return_to: BTreeMap::new(),
        failpoints,
    })
    .await
    .unwrap()
}

/// Holds a replica wherever its order matters, until it is let go. One that is never let go has died.
fn holds(number: usize, reached: mpsc::UnboundedSender<Reached>) -> Failpoints {
    Failpoints::new(Arc::new(move |point| {
        let reached = reached.clone();
        Box::pin(async move {
            if STEPS.contains(&point) {
                let (go, wait) = oneshot::channel();
                // At the end of a walk nobody listens, and nobody is held.
                let held = reached.send((number, point, go)).is_ok();
                if held && wait.await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        })
    }))
}

impl<'s> Walk<'s> {
    async fn begin(shared: &'s Shared, left: Mishaps) -> Self {
        let id = shared.connection().await;
        let (sender, reached) = mpsc::unbounded_channel();
        let mut replicas = Vec::new();
        for number in 0..2 {
            let spool = tempfile::tempdir().unwrap();
            let broker = start(shared, number, &spool, holds(number, sender.clone())).await;
            replicas.push(Replica {
                broker,
                spool,
                run: None,
                stands: None,
                claims: 2,
                dead: false,
                heard: None,
            });
        }
        let (first, _) = shared.refresh_tokens().pop().unwrap();
        let known = BTreeSet::new();
        let Ok(replicas) = replicas.try_into() else { unreachable!("there are two") };
        Self { shared, id, replicas, reached, left, lease_ended: false, holder: None, first, known }
    }

    /// The acts that are possible next, in a fixed order.
    async fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        let record = self.shared.record(self.id).await;
        let wanting = record.connection.state.refreshes() && record.generation() == 1;
        for (number, replica) in self.replicas.iter().enumerate() {
            match &replica.stands {
                _ if replica.dead => {}
                Some((point, _)) => {
                    acts.push(Act::Step(number));
                    if *point == Point::Claimed && self.left.lost_packets > 0 {
                        acts.extend([Act::LoseRequest(number), Act::LoseAnswer(number)]);
                    }
                    if self.left.crashes > 0 {
                        acts.push(Act::Crash(number));
                    }
                }
                None if wanting && self.holder.is_none() && replica.claims > 0 => {
                    acts.push(Act::Step(number));
                }
                None => {}
            }
        }
        if let Some(holder) = self.holder
            && (self.replicas[holder].dead || !self.lease_ended)
        {
            acts.push(Act::LeaseEnds);
        }
        acts
    }

    async fn perform(&mut self, act: Act) {
        let avito = self.shared.deployment.simulator(Simulated::Avito);
        match act {
            Act::LeaseEnds => {
                let holder = self.holder.take().unwrap();
                self.lease_ended |= !self.replicas[holder].dead;
                self.shared.deployment.clock.advance(LEASE_AND_MORE);
            }
            Act::Crash(number) => {
                self.left.crashes -= 1;
                let replica = &mut self.replicas[number];
                replica.stands = None;
                replica.dead = true;
            }
            Act::Step(number) => self.step(number).await,
            Act::LoseRequest(number) | Act::LoseAnswer(number) => {
                self.left.lost_packets -= 1;
                avito.fault(&Fault::Drop { processed: act == Act::LoseAnswer(number) }, 1);
                self.step(number).await;
                avito.clear_faults();
            }
        }
    }

    async fn step(&mut self, number: usize) {
        if let Some((_, go)) = self.replicas[number].stands.take() {
            go.send(()).unwrap();
        } else {
            self.wait_until_due().await;
            let replica = &mut self.replicas[number];
            replica.claims -= 1;
            let broker = Arc::clone(&replica.broker);
            let run = async move { broker.refresh_due(1).await.unwrap() };
            replica.run = Some(self.shared.tasks.spawn(run));
        }
        let run = self.replicas[number].run.as_mut().unwrap();
        tokio::select! {
            biased;
            reached = self.reached.recv() => {
                let (who, point, go) = reached.unwrap();
                assert_eq!(who, number, "only one of them moves");
                self.arrived(number, point, go);
            }
            ended = run => {
                ended.unwrap();
                self.replicas[number].run = None;
                if self.holder == Some(number) {
                    self.holder = None;
                }
            }
        }
    }

    fn arrived(&mut self, number: usize, point: Point, go: oneshot::Sender<()>) {
        let replica = &mut self.replicas[number];
        replica.stands = Some((point, go));
        match point {
            Point::Claimed => self.holder = Some(number),
            Point::Received => {
                replica.heard = self.shared.refresh_tokens().pop().map(|(token, _)| token);
            }
            // It was a grant, and it is on the disk: from here on one of us knows it.
            _ => self.known.extend(replica.heard.take()),
        }
    }

    fn clock(&self) -> &Clock {
        &self.shared.deployment.clock
    }

    async fn wait_until_due(&self) {
        let due = self.shared.record(self.id).await.connection.refresh_at;
        let now = self.clock().now();
        if let Some(left) = due.and_then(|due| Duration::try_from(due.duration_since(now)).ok()) {
            // The clocks of two engines agree to the millisecond at best.
            self.clock().advance(left + Duration::from_millis(100));
        }
    }

    /// Lets everybody finish, the dead start again, and the refreshers do their work; then asks the
    /// oracle. True if the connection is lost, which nobody may have been able to prevent.
    async fn end(mut self, class: RotationClass, order: &[Act]) -> bool {
        for number in 0..2 {
            while self.replicas[number].stands.is_some() {
                self.step(number).await;
            }
        }
        let mut brokers = Vec::new();
        for (number, replica) in self.replicas.iter().enumerate() {
            if replica.dead {
                let failpoints = Failpoints::default();
                let again = start(self.shared, number, &replica.spool, failpoints).await;
                again.recover().await.unwrap();
                brokers.push(again);
            } else {
                brokers.push(Arc::clone(&replica.broker));
            }
        }
        self.reached.close();
        self.settle(&brokers).await;
        let could_save = self.could_save().await;
        // What is stored may be dead, and only its use tells.
        brokers[0].sync().await.unwrap();
        let _ = brokers[0].refresh_now(&Actor::broker(), "avito-shop").await;
        self.settle(&brokers).await;
        let record = self.shared.record(self.id).await;
        let (state, reason) = (record.connection.state, record.connection.reason.as_deref());
        let about = || format!("{class:?}: {order:?}: {state}, {reason:?}");
        let lost = state == State::NeedsConsent;
        if lost {
            // A second presentation kills what the first one brought: there nobody could save it.
            let family = class == RotationClass::SingleUseFamily;
            assert!(family || could_save.is_empty(), "avoidable: {}", about());
            // What reached a disk, and was killed by a second presentation or by one that a lease
            // hid which had ended under a live holder, is refused like any other.
            let hidden = family || self.lease_ended;
            let told = reason == Some("lost_in_rotation") || hidden && reason.is_some();
            assert!(told, "{}", about());
        } else {
            assert_eq!(state, State::Active, "{}", about());
            let stored = self.shared.stored(&record);
            assert!(self.living().contains(&stored), "dead and not noticed: {}", about());
        }
        self.shared.deployment.database.store.delete(self.id).await.unwrap();
        lost
    }

    /// Lets time pass until nothing is open any more.
    async fn settle(&self, brokers: &[Arc<Broker>]) {
        for round in 0..8 {
            let record = self.shared.record(self.id).await;
            let open = record.claimed_at.is_some() || record.open_attempts > 0;
            let soon = self.clock().now() + LEASE_AND_MORE;
            let due = record.connection.refresh_at.is_some_and(|at| at < soon);
            if !record.connection.state.refreshes() || !open && !due {
                return;
            }
            // Where a second presentation is dangerous, it waits for the access token's end.
            let pause = if round == 4 { Duration::from_hours(25) } else { LEASE_AND_MORE };
            self.clock().advance(pause);
            for broker in brokers {
                broker.refresh_due(10).await.unwrap();
            }
        }
    }

    /// The refresh tokens that live and that one of us knows: the first one until it is spent, and
    /// all that reached a disk.
    async fn could_save(&self) -> BTreeSet<String> {
        let unspent = self.shared.record(self.id).await.generation() == 1;
        let known = self.known.iter().chain(unspent.then_some(&self.first));
        let known: BTreeSet<_> = known.cloned().collect();
        self.living().intersection(&known).cloned().collect()
    }

    fn living(&self) -> BTreeSet<String> {
        let tokens = self.shared.refresh_tokens().into_iter();
        tokens.filter(|(_, lives)| *lives).map(|(token, _)| token).collect()
    }
}

/// Walks every order, each from the beginning: the first choices are those of the walk before but
/// for the last one that had an alternative.
async fn walk_all(class: RotationClass, mishaps: Mishaps) -> (usize, usize) {
    let shared = Shared::new(class).await;
    let mut choices: Vec<(usize, usize)> = Vec::new();
    let (mut walks, mut lost) = (0, 0);
    loop {
        let mut walk = Walk::begin(&shared, mishaps).await;
        let mut order = Vec::new();
        loop {
            let acts = walk.acts().await;
            if acts.is_empty() {
                break;
            }
            let depth = order.len();
            if depth == choices.len() {
                choices.push((0, acts.len()));
            }
            assert_eq!(choices[depth].1, acts.len(), "the same walk twice: {order:?}");
            let act = acts[choices[depth].0];
            order.push(act);
            walk.perform(act).await;
        }
        walks += 1;
        lost += usize::from(walk.end(class, &order).await);
        while choices.last().is_some_and(|(chosen, of)| chosen + 1 == *of) {
            choices.pop();
        }
        match choices.last_mut() {
            Some((chosen, _)) => *chosen += 1,
            None => break,
        }
    }
    shared.deployment.simulators.shutdown().await;
    (walks, lost)
}

const CLASSES: [RotationClass; 6] = [
    RotationClass::None,
    RotationClass::GraceSameSuccessor,
    RotationClass::GraceNewSuccessors,
    RotationClass::GraceNewestLives,
    RotationClass::SingleUse,
    RotationClass::SingleUseFamily,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_two_replicas_loses_what_could_be_saved() {
    for (crashes, lost_packets) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        for class in CLASSES {
            // The short version leaves out most of what makes many orders.
            let few = match crashes + lost_packets {
                0 => true,
                1 => crashes == 1 && class == RotationClass::SingleUse,
                _ => false,
            };
            if !few && !report::is_long() {
                continue;
            }
            let (runs, lost) = walk_all(class, Mishaps { crashes, lost_packets }).await;
            let fault = format!(
                "model: lease ends, {crashes} crash, {lost_packets} lost packet, {class:?}"
            );
            // What is lost, no client could have saved: each walk holds the oracle to it.
            Row { runs, lost, unrecoverable: lost, ..Row::default() }.report(&fault);
        }
    }
}
