//! Bars for a few workloads, as SVG that is readable on a light and on a dark page.

use serde_json::Value;

use super::{contenders, figure, number};

/// Name of a chart's file, the workload, what its bars are, and the figure that they show.
const CHARTS: [(&str, &str, &str, &str); 3] = [
    (
        "cost-udp",
        "udp-connected",
        "Added to each datagram of a connected socket, in ns",
        "added",
    ),
    (
        "cost-tcp",
        "tcp-short",
        "Short TCP connections, as a part of those without",
        "ratio",
    ),
    (
        "cost-forwarded",
        "forwarded",
        "Added to each datagram that is forwarded, in ns",
        "added",
    ),
];

const WIDTH: f64 = 760.0;
const LABELS: f64 = 330.0;
const ROW: f64 = 22.0;
const TOP: f64 = 40.0;

/// File names without their ending, titles, and content.
pub fn all(run: &Value, origin: &str) -> Vec<(String, String, String)> {
    let charts = CHARTS.iter();
    charts
        .filter_map(|(name, workload, title, shown)| {
            let bars: Vec<_> = contenders(run)
                .into_iter()
                .filter(|(name, _)| name != "nothing")
                .filter_map(|(name, title)| {
                    Some((title, number(&figure(run, workload, &name)?[shown])))
                })
                .collect();
            (!bars.is_empty()).then(|| {
                let svg = chart(title, origin, &bars);
                ((*name).to_owned(), (*title).to_owned(), svg)
            })
        })
        .collect()
}

fn chart(title: &str, origin: &str, bars: &[(String, f64)]) -> String {
    let most = bars
        .iter()
        .map(|(_, value)| *value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let height = TOP + ROW * bars.len() as f64 + 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\" \
         role=\"img\" aria-label=\"{0}\">\n\
         <style>text {{ fill: #24292f }} .bar {{ fill: #8c959f }} .own {{ fill: #2f6f4f }}\n\
         @media (prefers-color-scheme: dark) {{ text {{ fill: #d0d7de }} \
         .own {{ fill: #5fb58a }} }}</style>\n\
         <text x=\"8\" y=\"22\" font-weight=\"bold\">{0}</text>\n",
        escaped(title)
    );
    for (number, (title, value)) in bars.iter().enumerate() {
        let y = TOP + ROW * number as f64;
        let width = (value.max(0.0) / most) * (WIDTH - LABELS - 80.0);
        let class = if title.starts_with("Trefoil") {
            "own"
        } else {
            "bar"
        };
        let shown = if most > 10.0 {
            format!("{value:.0}")
        } else {
            format!("{value:.3}")
        };
        svg.push_str(&format!(
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\n\
             <rect class=\"{class}\" x=\"{LABELS}\" y=\"{:.0}\" width=\"{width:.1}\" \
             height=\"14\"/>\n\
             <text x=\"{:.1}\" y=\"{:.0}\">{shown}</text>\n",
            LABELS - 8.0,
            y + 14.0,
            escaped(title),
            y + 3.0,
            LABELS + width + 6.0,
            y + 14.0,
        ));
    }
    svg.push_str(&format!(
        "<text x=\"8\" y=\"{:.0}\" font-size=\"10\">{}</text>\n</svg>\n",
        height - 8.0,
        escaped(origin)
    ));
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
