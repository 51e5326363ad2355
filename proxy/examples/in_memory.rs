//! The whole RESP path on rows in memory, to measure it alone: `cargo run --release -p
//! proxy --example in_memory -- 7777`.

#[path = "../tests/kit/mod.rs"]
mod kit;

use proxy::Settings;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(7777u16);
    let partitions = std::env::args().nth(2).and_then(|count| count.parse().ok()).unwrap_or(1u32);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    proxy::serve(kit::proxy(&kit::World::new(partitions), Settings::default()), listener, None)
        .await;
    Ok(())
}
