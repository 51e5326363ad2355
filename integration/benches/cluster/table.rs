//! Alternating measurements of several contenders, and the table of their medians.

use std::time::Duration;

use crate::driver::Figures;
use crate::median;

/// Results of one contender in all turns.
pub(crate) struct Contender {
    name: String,
    turns: Vec<Figures>,
}

/// A table of contenders; the first ones are the references.
pub(crate) struct Table {
    rivals: usize,
    contenders: Vec<Contender>,
}

impl Table {
    /// Measures all contenders in turn, for `rounds` rounds. The first `rivals` are the
    /// references: the others are compared with the fastest of them in each round.
    pub(crate) fn of(
        rounds: usize,
        rivals: usize,
        mut contenders: Vec<(String, Box<dyn FnMut() -> Figures + '_>)>,
    ) -> Table {
        let mut table = Table { rivals, contenders: Vec::new() };
        table.contenders.extend(
            contenders.iter().map(|(name, _)| Contender { name: name.clone(), turns: Vec::new() }),
        );
        for _ in 0..rounds {
            for ((_, turn), contender) in contenders.iter_mut().zip(&mut table.contenders) {
                contender.turns.push(turn());
            }
        }
        table
    }

    /// The median over rounds of a contender's rate, divided by that of its fastest
    /// rival.
    fn ratio(&self, contender: &Contender) -> f64 {
        let rival = |round: usize| {
            self.contenders[..self.rivals]
                .iter()
                .map(|rival| rival.turns[round].rate)
                .fold(0.0, f64::max)
        };
        median(
            contender
                .turns
                .iter()
                .enumerate()
                .map(|(round, turn)| turn.rate / rival(round))
                .collect(),
        )
    }

    pub(crate) fn print(&self, target: f64) {
        println!(
            "| who                                        | requests/s |  p50 ms |  p99 ms | \
             servers us | driver us | ratio | goal | met |"
        );
        println!(
            "|--------------------------------------------|-----------:|--------:|--------:\
             |-----------:|----------:|------:|-----:|-----|"
        );
        for (number, contender) in self.contenders.iter().enumerate() {
            let of =
                |figure: fn(&Figures) -> f64| median(contender.turns.iter().map(figure).collect());
            let ms = |time: Duration| time.as_secs_f64() * 1000.0;
            let verdict = if number < self.rivals {
                "|       |      |     |".to_owned()
            } else {
                let ratio = self.ratio(contender);
                format!(
                    "| {ratio:>5.2} | {target:>4.2} | {} |",
                    if ratio >= target { "yes" } else { "NO " }
                )
            };
            println!(
                "| {:<42} | {:>10.0} | {:>7.2} | {:>7.2} | {:>10.1} | {:>9.1} {verdict}",
                contender.name,
                of(|figures| figures.rate),
                median(contender.turns.iter().map(|figures| ms(figures.p50)).collect()),
                median(contender.turns.iter().map(|figures| ms(figures.p99)).collect()),
                of(|figures| figures.servers_us),
                of(|figures| figures.driver_us),
            );
        }
        println!();
    }
}
