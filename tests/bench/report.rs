//! The table: medians, the ratio to the floor, the spread, and the facts that the numbers depend on.
//!
//! Who calls it: `main`, once at the end.
//! What it calls: nothing.
//! What it never does: round a spread away, or say whether a number is good.

use std::fmt::Write as _;

use crate::measure::{Outcome, Plan, SLOW, Series};
use crate::servers::{FLOOR, Server};

const MEGABYTE: f64 = 1e6;
const GIBIBYTE: f64 = (1_u64 << 30) as f64;

/// A column: its head, decimals, and the value of one outcome; and which workload it shows.
struct Column {
    head: String,
    workload: usize,
    decimals: usize,
    /// With the ratio to the floor and the spread.
    in_full: bool,
    value: Box<dyn Fn(&Outcome) -> f64>,
}

/// The whole report as Markdown.
pub(crate) fn render(
    plan: &Plan,
    servers: &[Server],
    results: &[Series],
    facts: &[(&'static str, String)],
) -> String {
    let columns = columns(plan);
    let floor = servers.iter().position(|server| server.name == FLOOR);
    let mut rows = vec![
        std::iter::once("server".to_owned())
            .chain(columns.iter().map(|column| column.head.clone()))
            .collect(),
    ];
    for (server, series) in servers.iter().zip(results) {
        let mut row = vec![format!("{} ({})", server.name, server.shape)];
        for column in &columns {
            let floor = floor.map(|floor| median(&values(column, &results[floor])));
            row.push(cell(column, &values(column, series), floor));
        }
        rows.push(row);
    }
    let mut text = table(&rows);
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let Plan { rounds, files, sessions, bytes } = plan;
    writeln!(
        text,
        "\nRounds: {rounds}. Cells are medians; in brackets the ratio to {FLOOR} and the spread. Large file {} MiB over one \
         session, {} small files over {sessions} sessions. Plain FTP, PASV, loopback, all files in memory. 1 MB is \
         10^6 bytes. CPU is user and system time of all processes of the server, without the client's.\n\n{}",
        bytes >> 20,
        grouped(f64::from(*files), 0),
        facts.join("; ")
    )
    .expect("a string takes everything");
    text.push_str(&disturbances(servers, results));
    text
}

/// What came between, so that it is not hidden in a median.
fn disturbances(servers: &[Server], results: &[Series]) -> String {
    let mut text = String::new();
    for (server, series) in servers.iter().zip(results) {
        let refused: usize = series.iter().flatten().map(|outcome| outcome.pasv_refused).sum();
        if refused > 0 {
            text.push_str(&format!(
                "\n{} answered PASV with 425 and was asked again: {refused} times\n",
                server.name
            ));
        }
    }
    let outcomes = || results.iter().flatten().flatten();
    let seconds: f64 = outcomes().map(|outcome| outcome.seconds).sum();
    let others: f64 = outcomes().map(|outcome| outcome.others_seconds).sum();
    let worst = outcomes().map(|outcome| outcome.others_seconds / outcome.seconds).fold(0.0, f64::max);
    text.push_str(&format!(
        "\nCPU time taken by neither server nor client during the measurements: {:.2} of a core on average, {worst:.2} \
         in the worst measurement\n",
        others / seconds
    ));
    text
}

fn columns(plan: &Plan) -> Vec<Column> {
    let (bytes, files) = (plan.bytes as f64, f64::from(plan.files));
    let column = |head: &str, workload, decimals, in_full, value: Box<dyn Fn(&Outcome) -> f64>| Column {
        head: head.to_owned(),
        workload,
        decimals,
        in_full,
        value,
    };
    let rate = move |outcome: &Outcome| bytes / MEGABYTE / outcome.seconds;
    let cost = move |outcome: &Outcome| outcome.cpu_seconds / (bytes / GIBIBYTE);
    let slow = format!("files of {} ms or more", SLOW.as_millis());
    vec![
        column("download, MB/s", 0, 0, true, Box::new(rate)),
        column("CPU s/GiB", 0, 2, false, Box::new(cost)),
        column("upload, MB/s", 1, 0, true, Box::new(rate)),
        column("CPU s/GiB", 1, 2, false, Box::new(cost)),
        column("small files/s", 2, 0, true, Box::new(move |outcome| files / outcome.seconds)),
        column("CPU ms/file", 2, 2, false, Box::new(move |outcome| outcome.cpu_seconds * 1e3 / files)),
        column(&slow, 2, 0, false, Box::new(|outcome| outcome.slow_files as f64)),
    ]
}

fn values(column: &Column, series: &Series) -> Vec<f64> {
    series[column.workload].iter().map(&column.value).collect()
}

fn cell(column: &Column, values: &[f64], floor: Option<f64>) -> String {
    let show = |value| grouped(value, column.decimals);
    let middle = median(values);
    if !column.in_full {
        return show(middle);
    }
    let ratio = floor.map_or_else(|| "-".to_owned(), |floor| format!("{:.2}", middle / floor));
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{} ({ratio}; {}-{})", show(middle), show(least), show(most))
}

/// The middle value, or the mean of the two in the middle; there is at least one.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// With commas between thousands.
fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut shown = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown + fraction
}

fn table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
        if index == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(row.len())));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_digits() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(grouped(1_234_567.4, 0), "1,234,567");
        assert_eq!(grouped(123.456, 2), "123.46");
        assert_eq!(grouped(0.0, 0), "0");
    }
}
