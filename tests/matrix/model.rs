//! Every order in which two replicas can claim, send, hear and commit, with a lease that ends under
//! a live holder, a process that dies and a packet that gets lost. Nothing here is a copy: each
//! order is walked by two real brokers on one store, against a simulated provider whose oracle
//! knows what lives.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;
use token_broker::{
    audit::{By, Trail},
    broker::{Broker, LastSeen, Parts},
    clock::Clock,
    config::Config,
    domain::{
        connection::{
            Account, Connection, ConnectionId, GrantType, HeldGrant, Record, State, Vars,
        },
        slug::Slug,
    },
    failpoint::{Failpoints, Point},
    provider::{Outbound, client::Client},
    seal::{Keyring, Place, secret::Digest},
    simulator::{Fault, Kind, Simulated, SimulatorSettings, Simulators, settings::RotationClass},
    spool::Spool,
    store::Commit,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

use crate::{
    support::{broker::Person, database::TestDatabase, http::client},
    table::{self, Row},
};

/// Where the order of two replicas matters.
const STEPS: [Point; 3] = [Point::Claimed, Point::Received, Point::Spooled];

/// Longer than any lease.
const LEASE_AND_MORE: Duration = Duration::from_secs(100);

/// What may go wrong in one walk.
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
struct World {
    database: TestDatabase,
    simulators: Simulators,
    keyring_file: TempDir,
    outbound: Outbound,
    clients: BTreeMap<Slug, Arc<Client>>,
    tasks: TaskTracker,
}

impl World {
    async fn new(class: RotationClass) -> Self {
        let database = TestDatabase::sqlite().await;
        let mut simulated = SimulatorSettings::default();
        simulated.avito.rotation = Some(class);
        simulated.avito.rotation_grace = 10 * 86_400;
        simulated.register_callbacks("http://127.0.0.1:9");
        let simulators = Simulators::start(simulated, database.clock.clone()).await.unwrap();
        let keyring_file = tempfile::tempdir().unwrap();
        Keyring::generate().write_new(&keyring_file.path().join("key")).unwrap();
        let mut settings = simulators.configuration();
        let avito = settings["providers"]["profiles"]["avito"].as_table_mut().unwrap();
        avito.insert("tokens".to_owned(), tokens(class).into());
        let pace = toml::toml! { per_second = 1_000_000 burst = 1_000 in_flight = 8 };
        avito.insert("pace".to_owned(), pace.into());
        let state_dir = keyring_file.path().to_str().unwrap();
        settings.insert("state_dir".to_owned(), state_dir.into());
        let config = Config::load_over(None, HashMap::new(), &settings).unwrap();
        let outbound = Outbound::new(database.clock.clone(), Failpoints::default()).unwrap();
        Self {
            database,
            simulators,
            keyring_file,
            outbound,
            clients: config.clients,
            tasks: TaskTracker::new(),
        }
    }

    fn keyring(&self) -> Keyring {
        Keyring::read(&self.keyring_file.path().join("key")).unwrap()
    }

    /// Every refresh token of the newest authorisation, in order of issue, and whether it lives.
    fn refresh_tokens(&self) -> Vec<(String, bool)> {
        let known = self.simulators.of(Simulated::Avito).oracle().known;
        let chain = known.iter().map(|known| known.chain).max().unwrap_or_default();
        let ours = known.iter().filter(|one| one.chain == chain && one.kind == Kind::Refresh);
        ours.map(|one| (one.fingerprint.clone(), one.alive)).collect()
    }

    /// A connection that holds a first grant of the provider's and is due.
    async fn connection(&self) -> ConnectionId {
        let now = self.database.clock.now();
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
        let store = &self.database.store;
        store.create(&connection).await.unwrap();
        let answer = self.consent().await;
        let id = connection.id.to_string();
        let seal = |field: &'static str, name: &str| {
            let secret = SecretString::from(answer[name].as_str().unwrap());
            let sealed = self.keyring().seal(Place { record: &id, field, generation: 1 }, &secret);
            (sealed, Digest::of(&secret))
        };
        let (access, _) = seal("access", "access_token");
        let (refresh, refresh_hash) = seal("refresh", "refresh_token");
        let grant = HeldGrant {
            generation: 1,
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
        let application = &self.simulators.applications()["avito"];
        let port = self.simulators.of(Simulated::Avito).port();
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
        self.database.store.record_by_id(id).await.unwrap().unwrap()
    }

    /// The digest of the refresh token that the connection holds, as the oracle names it.
    fn stored(&self, record: &Record) -> String {
        let grant = record.grant.as_ref().unwrap();
        let id = record.connection.id.to_string();
        let place = Place { record: &id, field: "refresh", generation: grant.generation };
        let refresh = self.keyring().open(place, grant.refresh.as_ref().unwrap()).unwrap();
        Digest::of(&refresh).fingerprint()
    }
}

/// What a profile says of a class.
fn tokens(class: RotationClass) -> toml::Table {
    let rotation = match class {
        RotationClass::None => "none",
        RotationClass::SingleUse => "single_use",
        RotationClass::SingleUseFamily => "single_use_family",
        _ => "grace",
    };
    let mut tokens = toml::Table::new();
    tokens.insert("rotation".to_owned(), rotation.into());
    if rotation == "grace" {
        tokens.insert("grace".to_owned(), "10d".into());
    }
    tokens
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
struct Walk<'w> {
    world: &'w World,
    id: ConnectionId,
    replicas: [Replica; 2],
    reached: mpsc::UnboundedReceiver<Reached>,
    left: Mishaps,
    lease_ended: bool,
    /// Who holds the claim, as far as time has not ended it.
    holder: Option<usize>,
    /// The refresh token that it begins with.
    first: String,
    /// The refresh tokens that reached the disk of any of us.
    known: BTreeSet<String>,
}

async fn start(
    world: &World,
    number: usize,
    spool: &TempDir,
    failpoints: Failpoints,
) -> Arc<Broker> {
    let clock = world.database.clock.clone();
    Broker::start(Parts {
        store: world.database.store.clone(),
        keyring: world.keyring(),
        outbound: world.outbound.clone(),
        spool: Spool::open(spool.path()).unwrap(),
        watermark: LastSeen::read(spool.path()).unwrap(),
        replica: format!("replica-{number}"),
        trail: Trail::open(spool.path()).unwrap(),
        keep_events: Duration::from_hours(24),
        clock,
        clients: world.clients.clone(),
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

impl<'w> Walk<'w> {
    async fn begin(world: &'w World, left: Mishaps) -> Self {
        let id = world.connection().await;
        let (sender, reached) = mpsc::unbounded_channel();
        let mut replicas = Vec::new();
        for number in 0..2 {
            let spool = tempfile::tempdir().unwrap();
            let broker = start(world, number, &spool, holds(number, sender.clone())).await;
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
        let (first, _) = world.refresh_tokens().pop().unwrap();
        let known = BTreeSet::new();
        let Ok(replicas) = replicas.try_into() else { unreachable!("there are two") };
        Self { world, id, replicas, reached, left, lease_ended: false, holder: None, first, known }
    }

    /// What can happen next, in a fixed order.
    async fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        let record = self.world.record(self.id).await;
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
        let avito = self.world.simulators.of(Simulated::Avito);
        match act {
            Act::LeaseEnds => {
                let holder = self.holder.take().unwrap();
                self.lease_ended |= !self.replicas[holder].dead;
                self.world.database.clock.advance(LEASE_AND_MORE);
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
            replica.run = Some(self.world.tasks.spawn(run));
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
                replica.heard = self.world.refresh_tokens().pop().map(|(token, _)| token);
            }
            // It was a grant, and it is on the disk: from here on one of us knows it.
            _ => self.known.extend(replica.heard.take()),
        }
    }

    fn clock(&self) -> &Clock {
        &self.world.database.clock
    }

    async fn wait_until_due(&self) {
        let due = self.world.record(self.id).await.connection.refresh_at;
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
                let again = start(self.world, number, &replica.spool, failpoints).await;
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
        let _ = brokers[0].refresh_now(&By::broker(), "avito-shop").await;
        self.settle(&brokers).await;
        let record = self.world.record(self.id).await;
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
            let stored = self.world.stored(&record);
            assert!(self.living().contains(&stored), "dead and not noticed: {}", about());
        }
        self.world.database.store.delete(self.id).await.unwrap();
        lost
    }

    /// Lets time pass until nothing is open any more.
    async fn settle(&self, brokers: &[Arc<Broker>]) {
        for round in 0..8 {
            let record = self.world.record(self.id).await;
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
        let unspent = self.world.record(self.id).await.generation() == 1;
        let known = self.known.iter().chain(unspent.then_some(&self.first));
        let known: BTreeSet<_> = known.cloned().collect();
        self.living().intersection(&known).cloned().collect()
    }

    fn living(&self) -> BTreeSet<String> {
        let tokens = self.world.refresh_tokens().into_iter();
        tokens.filter(|(_, lives)| *lives).map(|(token, _)| token).collect()
    }
}

/// Walks every order, each from the beginning: the first choices are those of the walk before but
/// for the last one that had an alternative.
async fn walk_all(class: RotationClass, mishaps: Mishaps) -> (usize, usize) {
    let world = World::new(class).await;
    let mut choices: Vec<(usize, usize)> = Vec::new();
    let (mut walks, mut lost) = (0, 0);
    loop {
        let mut walk = Walk::begin(&world, mishaps).await;
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
    world.simulators.shutdown().await;
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
            if !few && !table::is_long() {
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
