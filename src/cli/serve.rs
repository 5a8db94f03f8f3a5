//! `serve` and `simulate`: until a signal ends them.

use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, say};
use crate::{
    app::{App, Listeners},
    clock::Clock,
    config::Config,
    failpoint::Failpoints,
    simulator::Simulators,
};

pub(crate) async fn serve(config: Config) -> Result<(), CliError> {
    // Before anything else: what waits for us to serve may end us as soon as it hears so.
    let signalled = until_signal();
    let listeners = Listeners::bind(config.public_listen, config.internal_listen).await?;
    let (public, internal) = (config.public_url.clone(), config.internal_url.clone());
    let public_listen = listeners.public.local_addr()?;
    let internal_listen = listeners.internal.local_addr()?;
    let app =
        App::start(config, listeners, Clock::system(), Failpoints::from_environment()).await?;
    if !app.broker().has_operators() {
        tracing::info!("no operator yet: run `token-broker operators create NAME`");
    }
    tracing::info!(%public, %public_listen, %internal, %internal_listen, "serving");
    run_until(signalled, app).await
}

/// Serves until the signal, then drains. Further signals change nothing: what is under way
/// may be a token that exists nowhere else yet.
async fn run_until(
    signalled: impl Future<Output = Result<(), CliError>>,
    app: App,
) -> Result<(), CliError> {
    let shutdown = app.shutdown();
    let run = app.run();
    tokio::pin!(run);
    tokio::select! {
        result = signalled => {
            result?;
            shutdown.cancel();
            run.await
        }
        ended = &mut run => ended,
    }
    .map_err(CliError::internal)
}

/// Waits for SIGINT or SIGTERM, and hears those that come between the call and the waiting.
pub(super) fn until_signal() -> impl Future<Output = Result<(), CliError>> {
    let signals = signal(SignalKind::interrupt())
        .and_then(|interrupt| Ok((interrupt, signal(SignalKind::terminate())?)));
    async move {
        let (mut interrupt, mut terminate) = signals?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    }
}

/// Runs the simulated providers alone, registered for a broker at the configured `public_url`.
pub(crate) async fn simulate(config: Config) -> Result<(), CliError> {
    let signalled = until_signal();
    let mut settings = config.simulators;
    settings.register_callbacks(config.public_url.as_str());
    let simulators = Simulators::start(settings, Clock::system())
        .await
        .map_err(|error| CliError::unavailable(format!("simulators: {error}")))?;
    say("# Simulated providers are running until Ctrl-C. Settings for `token-broker serve`:\n")?;
    say(simulators.configuration().to_string().trim_end())?;
    signalled.await?;
    simulators.shutdown().await;
    Ok(())
}
