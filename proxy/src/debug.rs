//! DEBUG SLEEP and DEBUG SET-ACTIVE-EXPIRE.

use std::time::Duration;

use cluster::Boxed;
use commands::Reply;
use commands::server::DebugCommand;

use crate::{Client, Proxy};

/// Maximum of DEBUG SLEEP: longer than any test of a client's timeouts.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Runs a DEBUG command of `client` about the process.
pub(crate) fn run<'a>(
    proxy: &'a Proxy,
    client: &'a Client,
    command: DebugCommand,
) -> Boxed<'a, Reply> {
    Box::pin(async move {
        match command {
            DebugCommand::Sleep { seconds } => sleep(proxy, client, seconds).await,
            DebugCommand::SetActiveExpire { on } => {
                proxy.host.set_active_expire(on);
                Reply::OK
            }
        }
    })
}

/// DEBUG SLEEP. Only this connection sleeps, as the server has other threads. It ends
/// when the client is killed or leaves.
async fn sleep(proxy: &Proxy, client: &Client, seconds: f64) -> Reply {
    tokio::select! {
        () = tokio::time::sleep(sleep_time(seconds)) => {}
        () = client.killed() => {}
        () = proxy.shutdown.cancelled() => {}
    }
    Reply::OK
}

/// Clamps a number of seconds to a duration; NaN and negative numbers are zero.
fn sleep_time(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, SLEEP_MAX.as_secs_f64()))
        .unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_takes_any_number() {
        for (seconds, time) in [
            (0.0, Duration::ZERO),
            (-1.0, Duration::ZERO),
            (0.5, Duration::from_millis(500)),
            (f64::NAN, Duration::ZERO),
        ] {
            assert_eq!(sleep_time(seconds), time, "{seconds}");
        }
        assert_eq!((sleep_time(1e300), sleep_time(f64::INFINITY)), (SLEEP_MAX, SLEEP_MAX));
    }
}
