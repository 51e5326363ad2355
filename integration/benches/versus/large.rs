//! Data larger than memory: the same load on data that fits and does not; and a
//! comparison with redis-server with enough memory for all.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::Server;
use rustix::fs::Advice;

use crate::driver::{Ask, Figures, Load, Rows, Spread, drive};
use crate::{CLIENTS, Redis, Settings, bridle, directory_bytes, median, megabytes, usage};

/// Values of 100 to 1,000 bytes.
const MEAN_BYTES: u64 = 550;
/// Interval at which files are dropped from the page cache, where it must hold none.
const DROP_PERIOD: Duration = Duration::from_millis(50);

/// One server and its data.
struct Subject {
    bytes: u64,
    server: Server,
    rows: Rows,
}

/// I/O of a load, per request.
struct Io {
    /// Bytes requested, from the page cache or the disk.
    asked: f64,
    from_disk: f64,
    to_disk: f64,
}

/// With `memory` at 256 MiB, data that fits and data that does not, in turn; results of
/// larger data next to those of the smallest.
pub(crate) fn report(settings: &Settings) {
    println!(
        "memory = \"256MiB\", durability os; values of 100 to 1,000 bytes that do not compress, \
         {CLIENTS} connections, median of {} turns",
        settings.rounds()
    );
    println!(
        "of {:?}; `of first`: the rate beside that with the least data, of each turn (goal: at \
         least 0.33 while the page cache holds the files)\n",
        settings.window
    );
    let mut subjects: Vec<Subject> = settings.data.iter().map(|mib| fill(mib << 20)).collect();
    println!(
        "| data MiB | command | keys    | pipe | requests/s | of first | p50 ms | p99 ms | read B \
         | of disk B | written B |"
    );
    println!(
        "|---------:|---------|---------|-----:|-----------:|---------:|-------:|-------:|-------:\
         |----------:|----------:|"
    );
    for ask in [Ask::Get, Ask::Set, Ask::Mixed] {
        for spread in [Spread::Uniform, Spread::Zipfian] {
            for pipeline in [1, 16] {
                in_turns(
                    &subjects,
                    &Load { ask, spread, connections: CLIENTS, pipeline, window: settings.window },
                    settings.rounds(),
                );
            }
        }
    }
    println!("\nThe same while nothing is in the page cache, GET, uniform:\n");
    for subject in &subjects {
        without_page_cache(subject, settings.window);
    }
    println!("\nKilled, and serving again:\n");
    for subject in &mut subjects {
        let load = Load {
            ask: Ask::Set,
            spread: Spread::Uniform,
            connections: CLIENTS,
            pipeline: 16,
            window: Duration::from_secs(5),
        };
        drive(subject.server.port, &subject.rows, &[load]);
        let (on_disk, took) = (directory_bytes(subject.server.dir()), subject.server.restart());
        let (data, on_disk) = (megabytes(subject.bytes), megabytes(on_disk));
        println!(
            "- {data:.0} MiB of values, {on_disk:.0} MiB on disk, after 5 s of SET: {:.2} s \
             (goal: under 10)",
            took.as_secs_f64()
        );
    }
    println!();
}

fn fill(bytes: u64) -> Subject {
    let server = bridle("os", "256MiB");
    let rows = Rows::new((bytes / MEAN_BYTES).max(1), 100..=2 * MEAN_BYTES - 100);
    let began = Instant::now();
    rows.fill(server.port);
    let took = began.elapsed().as_secs_f64();
    settle(&server);
    println!(
        "- {:.0} MiB: {} rows written in {took:.0} s, compacted after {:.0} s",
        megabytes(bytes),
        rows.keys,
        began.elapsed().as_secs_f64()
    );
    Subject { bytes, server, rows }
}

/// Waits until nothing is left to compact.
fn settle(server: &Server) {
    let mut client = server.client();
    let deadline = Instant::now() + Duration::from_secs(600);
    let mut quiet = 0;
    while quiet < 3 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(700));
        let info = client.run("INFO rocksdb").text();
        let figure = |name: &str| {
            info.lines().find_map(|line| {
                line.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<u64>().ok()
            })
        };
        let running = ["rocksdb_running_compactions", "rocksdb_running_flushes"]
            .iter()
            .map(|name| figure(name).unwrap_or(0))
            .sum::<u64>();
        quiet = if running == 0 { quiet + 1 } else { 0 };
    }
}

/// Runs one load on all subjects in turn, several times.
fn in_turns(subjects: &[Subject], load: &Load, rounds: usize) {
    let turns: Vec<Vec<(Figures, Io)>> = (0..rounds)
        .map(|_| {
            let turn = subjects.iter().map(|subject| {
                let before = io(subject.server.pid());
                let figures =
                    drive(subject.server.port, &subject.rows, std::slice::from_ref(load))[0];
                (figures, io_each(before, io(subject.server.pid()), figures.requests))
            });
            turn.collect()
        })
        .collect();
    for (at, subject) in subjects.iter().enumerate() {
        let of = |figure: &dyn Fn(&(Figures, Io)) -> f64| {
            median(turns.iter().map(|turn| figure(&turn[at])).collect())
        };
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        println!(
            "| {:>8.0} | {:<7} | {:<7} | {:>4} | {:>10.0} | {:>8.2} | {:>6.2} | {:>6.2} | {:>6.0} \
             | {:>9.0} | {:>9.0} |",
            megabytes(subject.bytes),
            load.ask.name(),
            load.spread.name(),
            load.pipeline,
            of(&|(figures, _)| figures.rate),
            median(turns.iter().map(|turn| turn[at].0.rate / turn[0].0.rate).collect()),
            of(&|(figures, _)| ms(figures.p50)),
            of(&|(figures, _)| ms(figures.p99)),
            of(&|(_, io)| io.asked),
            of(&|(_, io)| io.from_disk),
            of(&|(_, io)| io.to_disk),
        );
    }
}

fn without_page_cache(subject: &Subject, window: Duration) {
    let (stop, dir) = (Arc::new(AtomicBool::new(false)), subject.server.dir().to_owned());
    let dropping = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(Ordering::Relaxed) {
                drop_pages(&dir);
                std::thread::sleep(DROP_PERIOD);
            }
        }
    });
    let load =
        Load { ask: Ask::Get, spread: Spread::Uniform, connections: CLIENTS, pipeline: 1, window };
    let before = io(subject.server.pid());
    let figures = drive(subject.server.port, &subject.rows, &[load])[0];
    let io = io_each(before, io(subject.server.pid()), figures.requests);
    stop.store(true, Ordering::Relaxed);
    dropping.join().expect("it does not fail");
    println!(
        "- {:.0} MiB: {:.0}/s, p50 {:.2} and p99 {:.2} ms, {:.0} B read of disk a request",
        megabytes(subject.bytes),
        figures.rate,
        figures.p50.as_secs_f64() * 1000.0,
        figures.p99.as_secs_f64() * 1000.0,
        io.from_disk
    );
}

/// Drops the files of a directory from the page cache; dirty pages stay.
fn drop_pages(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            drop_pages(&path);
        } else if let Ok(file) = File::open(&path) {
            // A file that has disappeared meanwhile has no pages.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}

/// I/O of a process in bytes: requested, read from disk, written to disk.
fn io(pid: u32) -> [u64; 3] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("a live process of ours");
    let figure = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .expect("every process has it")
    };
    ["rchar:", "read_bytes:", "write_bytes:"].map(figure)
}

fn io_each(before: [u64; 3], after: [u64; 3], requests: u64) -> Io {
    let each = |at: usize| (after[at] - before[at]) as f64 / requests.max(1) as f64;
    Io { asked: each(0), from_disk: each(1), to_disk: each(2) }
}

/// With memory for all data, compared with redis-server: 2 million rows of 400 bytes, in
/// turn.
pub(crate) fn beside_redis(settings: &Settings) {
    const MEMORY: u64 = 4 << 30;
    let rows = Rows::new(settings.rows as u64, 400..=400);
    let redis = Redis::start(&[
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--auto-aof-rewrite-percentage",
        "0",
    ]);
    let bridle = bridle("always", "4GiB");
    rows.fill(redis.port);
    rows.fill(bridle.port);
    settle(&bridle);
    println!(
        "memory = \"4GiB\": {} rows of 400 bytes that do not compress, redis-server appendfsync \
         always, bridle durability always,",
        rows.keys
    );
    println!(
        "{CLIENTS} connections, median of {} turns of {:?}\n",
        settings.rounds(),
        settings.window
    );
    println!(
        "| command | pipe | redis/s   | bridle/s  | ratio | goal | met | bridle p50 ms | p99 ms |"
    );
    println!(
        "|---------|-----:|----------:|----------:|------:|-----:|-----|--------------:|-------:|"
    );
    let mut most = 0;
    for (ask, pipeline, goal) in
        [(Ask::Get, 1, 0.9), (Ask::Get, 16, 0.5), (Ask::Set, 1, 0.9), (Ask::Set, 16, 0.6)]
    {
        let load = Load {
            ask,
            spread: Spread::Uniform,
            connections: CLIENTS,
            pipeline,
            window: settings.window,
        };
        let turn = |port: u16| drive(port, &rows, std::slice::from_ref(&load))[0];
        // A warm-up, so that first reads are not measured.
        turn(bridle.port);
        let turns: Vec<(Figures, Figures)> = (0..settings.rounds())
            .map(|_| {
                let turn = (turn(redis.port), turn(bridle.port));
                most = most.max(usage(bridle.pid()).1);
                turn
            })
            .collect();
        let of = |figure: &dyn Fn(&(Figures, Figures)) -> f64| {
            median(turns.iter().map(figure).collect())
        };
        let ratio = of(&|(theirs, ours)| ours.rate / theirs.rate);
        println!(
            "| {:<7} | {pipeline:>4} | {:>9.0} | {:>9.0} | {ratio:>5.2} | {goal:>4.2} | {} | \
             {:>13.2} | {:>6.2} |",
            ask.name(),
            of(&|(theirs, _)| theirs.rate),
            of(&|(_, ours)| ours.rate),
            if ratio >= goal { "yes" } else { "NO " },
            of(&|(_, ours)| ours.p50.as_secs_f64() * 1000.0),
            of(&|(_, ours)| ours.p99.as_secs_f64() * 1000.0),
        );
    }
    let (bound, theirs) = (MEMORY / 4 * 5 + 120_000_000, usage(redis.child.id()).1);
    println!(
        "\n- bridle resident at most: {:.0} MiB (goal: within 1.25 x memory + 120 MB, {:.0} MiB)",
        megabytes(most),
        megabytes(bound)
    );
    println!("- redis-server resident: {:.0} MiB\n", megabytes(theirs));
}
