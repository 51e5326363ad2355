//! Readers next to writers that wait for the disk: GET alone, and GET while other clients
//! write with an fsync per write.

use std::time::Duration;

use crate::driver::{Ask, Figures, Load, Rows, Spread, drive};
use crate::{Redis, Settings, bridle, median};

const CONNECTIONS: usize = 8;

/// Measures GET alone and next to writers, alternating between both servers.
pub(crate) fn report(settings: &Settings) {
    println!(
        "GET of {CONNECTIONS} connections alone, and beside SET of {CONNECTIONS} others, each \
         write fsynced; 100,000 rows of 64 bytes,"
    );
    println!(
        "median of {} turns of {:?}; goal: p99 beside writers at most 2 x alone\n",
        settings.rounds(),
        settings.window
    );
    println!(
        "| server                  | readers | GET/s  | SET/s | p50 ms | p99 ms | p99 of alone |"
    );
    println!(
        "|-------------------------|---------|-------:|------:|-------:|-------:|-------------:|"
    );
    let rows = Rows::new(100_000, 64..=64);
    let redis = Redis::start(&[
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--auto-aof-rewrite-percentage",
        "0",
    ]);
    let bridle = bridle("always", "auto");
    for (name, port) in [("bridle, always", bridle.port), ("redis, appendfsync always", redis.port)]
    {
        rows.fill(port);
        of(name, port, &rows, settings);
    }
    println!();
}

fn of(name: &str, port: u16, rows: &Rows, settings: &Settings) {
    let load = |ask| Load {
        ask,
        spread: Spread::Uniform,
        connections: CONNECTIONS,
        pipeline: 1,
        window: settings.window,
    };
    // A warm-up, so that first reads are not measured.
    drive(port, rows, &[load(Ask::Get)]);
    let turns: Vec<(Figures, Vec<Figures>)> = (0..settings.rounds())
        .map(|_| {
            (
                drive(port, rows, &[load(Ask::Get)])[0],
                drive(port, rows, &[load(Ask::Get), load(Ask::Set)]),
            )
        })
        .collect();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let of = |figure: &dyn Fn(&(Figures, Vec<Figures>)) -> f64| {
        median(turns.iter().map(figure).collect())
    };
    println!(
        "| {name:<23} | alone   | {:>6.0} | {:>5} | {:>6.3} | {:>6.3} | {:>12} |",
        of(&|(alone, _)| alone.rate),
        "",
        of(&|(alone, _)| ms(alone.p50)),
        of(&|(alone, _)| ms(alone.p99)),
        ""
    );
    println!(
        "| {name:<23} | beside  | {:>6.0} | {:>5.0} | {:>6.3} | {:>6.3} | {:>12.2} |",
        of(&|(_, beside)| beside[0].rate),
        of(&|(_, beside)| beside[1].rate),
        of(&|(_, beside)| ms(beside[0].p50)),
        of(&|(_, beside)| ms(beside[0].p99)),
        of(&|(alone, beside)| ms(beside[0].p99) / ms(alone.p99)),
    );
}
