//! The picture of a [`Screen`]. It works in 80 columns and 24 lines; in fewer, what matters least goes first.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};

use super::screen::{COLUMNS, Column, Focus, Screen};
use crate::cli::cluster::{Room, backups, lag, memory, runs_on, status_of};
use crate::cluster::view::{Condition, Vm};
use crate::console::status::duration;

/// Lines of the box about the VM that is selected.
const DETAIL: u16 = 6;

fn colour(condition: Condition) -> Style {
    Style::new().fg(match condition {
        Condition::Protected => Color::Green,
        Condition::Joining => Color::Cyan,
        Condition::Unprotected => Color::Yellow,
        Condition::Waiting => Color::Magenta,
        Condition::Down => Color::Red,
    })
}

fn heading(column: Column) -> &'static str {
    match column {
        Column::Name => "VM",
        Column::Condition => "STATE",
        Column::Generation => "GEN",
        Column::Host => "RUNS ON",
        Column::Backup => "BACKUP",
        Column::Lag => "LAG",
        Column::Held => "HELD",
        Column::Log => "LOG B/S",
    }
}

/// Draws it.
pub fn draw(frame: &mut Frame, screen: &mut Screen) {
    let area = frame.area();
    let hosts = screen.view.as_ref().map_or(0, |view| view.hosts.len()) as u16;
    let hosts = if area.height < 14 { 0 } else { (hosts.max(1) + 2).min(area.height / 3) };
    let detail = if area.height < 20 { 0 } else { DETAIL };
    let [top, vms, about, below, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(detail),
        Constraint::Length(hosts),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_summary(frame, screen, top);
    draw_vms(frame, screen, vms);
    if detail > 0 {
        draw_about(frame, screen, about);
    }
    if hosts > 0 {
        draw_hosts(frame, screen, below);
    }
    let help = " q quit   ↑↓ select   tab VMs/hosts   s sort   r reverse";
    frame.render_widget(Paragraph::new(help).style(Style::new().add_modifier(Modifier::DIM)), keys);
}

fn draw_summary(frame: &mut Frame, screen: &Screen, area: Rect) {
    let mut counts = vec![Span::raw(" ")];
    if let Some(view) = &screen.view {
        counts.push(Span::raw(format!("{} hosts, {} VMs", view.hosts.len(), view.vms.len())));
        let all =
            [Condition::Protected, Condition::Joining, Condition::Unprotected, Condition::Waiting, Condition::Down];
        for condition in all {
            let count = view.vms.values().filter(|vm| vm.condition() == condition).count();
            if count > 0 {
                counts.push(Span::raw("   "));
                counts.push(Span::styled(format!("{count} {condition}"), colour(condition)));
            }
        }
        if !view.unreadable.is_empty() {
            counts.push(Span::styled(format!("   {} unreadable", view.unreadable.len()), Style::new().fg(Color::Red)));
        }
    }
    let first = match &screen.trouble {
        Some(trouble) => Line::styled(format!(" what follows may be old: {trouble}"), Style::new().fg(Color::Red)),
        None => Line::styled(format!(" {}", screen.location), Style::new().add_modifier(Modifier::DIM)),
    };
    frame.render_widget(Paragraph::new(vec![first, Line::from(counts)]), area);
}

/// A style for what is selected, stronger where the keys go.
fn selection(focus: bool) -> Style {
    if focus { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() }
}

fn draw_vms(frame: &mut Frame, screen: &mut Screen, area: Rect) {
    let figures = &screen.figures;
    let vms = screen.vms();
    let row = |(name, vm): &(&str, &Vm)| {
        let condition = vm.condition();
        let status = screen.status(vm);
        let figure = |figure: Option<String>| Cell::from(figure.unwrap_or_else(|| "-".into()));
        Row::new([
            Cell::from((*name).to_owned()),
            Cell::from(Span::styled(condition.to_string(), colour(condition))),
            Cell::from(vm.generation().to_string()),
            Cell::from(runs_on(vm, figures, Room::Narrow)),
            Cell::from(backups(vm, figures, Room::Narrow)),
            figure(lag(vm, figures).map(duration)),
            figure(status.map(|status| status.outputs_held.to_string())),
            figure(status.map(|status| short(status.log_bytes_per_s))),
        ])
    };
    let selected = screen.selected_vm().and_then(|(name, _)| vms.iter().position(|(other, _)| *other == name));
    let headings = COLUMNS.map(|column| {
        let sorted = column == screen.sort.0;
        let arrow = if !sorted {
            ""
        } else if screen.sort.1 {
            "▲"
        } else {
            "▼"
        };
        let style =
            Style::new().add_modifier(if sorted { Modifier::BOLD | Modifier::UNDERLINED } else { Modifier::BOLD });
        Cell::from(Span::styled(format!("{}{arrow}", heading(column)), style))
    });
    let widths = [
        Constraint::Fill(3),
        Constraint::Length(11),
        Constraint::Length(5),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Length(8),
    ];
    let table = Table::new(vms.iter().map(row).collect::<Vec<_>>(), widths)
        .header(Row::new(headings))
        .block(Block::new().borders(Borders::TOP))
        .row_highlight_style(selection(screen.focus == Focus::Vms));
    screen.states[0].select(selected);
    frame.render_stateful_widget(table, area, &mut screen.states[0]);
}

/// A number of bytes in at most seven characters.
fn short(bytes: u64) -> String {
    match bytes {
        0..100_000 => bytes.to_string(),
        100_000..10_000_000 => format!("{:.1} k", bytes as f64 / 1e3),
        _ => format!("{:.1} M", bytes as f64 / 1e6),
    }
}

fn draw_about(frame: &mut Frame, screen: &Screen, area: Rect) {
    let Some((name, vm)) = screen.selected_vm() else {
        frame.render_widget(Block::new().borders(Borders::TOP), area);
        return;
    };
    let mut lines = Vec::new();
    for side in &vm.sides {
        let answer = match (screen.figures.get(&side.control), status_of(&screen.figures, side)) {
            (Some(Err(_)), _) => Span::styled("unreachable", Style::new().fg(Color::Red)),
            (_, Some(status)) => {
                let up = duration(status.uptime_ms.saturating_mul(1_000_000));
                Span::raw(format!("guest {}, up {up}", status.guest))
            }
            (None | Some(Ok(_)), None) => Span::raw(""),
        };
        let state = if vm.is_over(side) { "over" } else { &side.state };
        let text = format!(" {:<12} {:<11} {state:<12} gen {:<3} ", side.host, side.role, side.generation);
        lines.push(Line::from(vec![Span::raw(text), answer, Span::raw(format!("  {}", side.control))]));
    }
    if let Some(status) = screen.status(&vm) {
        lines.push(Line::raw(format!(
            " {} entries, {} clients, slow-down {:.1} %, memory {} MiB",
            status.entries,
            status.console.clients,
            f64::from(status.slowdown_per_mille) / 10.0,
            status.memory_mib.unwrap_or(0),
        )));
        if let Some(transfer) = status.transfer.as_ref().filter(|_| vm.condition() == Condition::Joining) {
            lines.push(Line::raw(format!(" transfer: {transfer}")));
        }
    }
    match &vm.register {
        Some(claim) => {
            lines.push(Line::raw(format!(" register: generation {}, {}", claim.generation, claim.host_name)))
        }
        None => lines.push(Line::raw(" register: none that can be read")),
    }
    let block = Block::new().borders(Borders::TOP).title(format!(" {name} "));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_hosts(frame: &mut Frame, screen: &mut Screen, area: Rect) {
    let Some(view) = screen.view.clone() else { return };
    let rows = view.hosts.iter().map(|(name, host)| {
        let cpu = host.cpu.clone().unwrap_or_else(|| "-".into());
        let agent = if host.record.is_some() { "yes" } else { "-" };
        let [runs, protects] = [&host.runs, &host.protects].map(|vms| vms.len().to_string());
        Row::new([name.clone(), agent.into(), runs, protects, memory(host), cpu])
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(5),
        Constraint::Length(4),
        Constraint::Length(8),
        Constraint::Length(18),
        Constraint::Fill(3),
    ];
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let table = Table::new(rows, widths)
        .header(Row::new(["HOST", "AGENT", "RUNS", "PROTECTS", "GUEST MEMORY", "CPU"]).style(bold))
        .block(Block::new().borders(Borders::TOP))
        .row_highlight_style(selection(screen.focus == Focus::Hosts));
    let selected = screen.selected_host();
    screen.states[1].select(selected.and_then(|selected| view.hosts.keys().position(|name| *name == selected)));
    frame.render_stateful_widget(table, area, &mut screen.states[1]);
}

#[cfg(test)]
mod tests {
    use super::super::screen::tests::screen;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn picture(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn everything_fits_into_80_columns_and_24_lines() {
        let mut screen = screen();
        screen.on_key(ratatui::crossterm::event::KeyCode::End, ratatui::crossterm::event::KeyModifiers::NONE);
        let shown = picture(&mut screen, 80, 24);
        let rule = "─".repeat(80);
        let expected = [
            " zk://a:2181/lockstep",
            " 3 hosts, 5 VMs   2 protected   1 unprotected   1 waiting   1 down",
            &rule,
            "VM▼          STATE       GEN   RUNS ON      BACKUP       LAG      HELD  LOG B/S",
            "alone        unprotected 3     beta         -            -        2     20",
            "db           protected   1     alpha        beta         500 ns   2     2500.0 k",
            "gone         down        7     - (last alph -            -        -     -",
            "new          waiting     1     (alpha)      -            -        -     -",
            "web          protected   1     alpha        beta !       2.0 ms   2     10",
        ];
        assert_eq!(shown[..9], expected);
        let text = shown.join("\n");
        for line in [
            " alpha        primary     protected    gen 1   guest starting, up 0 ns  alpha:1",
            " beta         backup      following    gen 1   unreachable  beta:1",
            " register: generation 1, alpha",
            "HOST             AGENT RUNS PROTECTS GUEST MEMORY       CPU",
            "alpha            -     2    0        192 MiB            kind",
            "beta             -     1    2        192 MiB            kind",
            "gamma            yes   0    0        0 of 4096 MiB      -",
        ] {
            assert!(text.contains(line), "`{line}` is missing in\n{text}");
        }
        assert!(shown[23].starts_with(" q quit"));
    }

    #[test]
    fn no_size_is_too_small() {
        for width in [0, 1, 5, 20, 79, 200] {
            for height in [0, 1, 2, 3, 5, 10, 13, 19, 60] {
                picture(&mut screen(), width, height);
                picture(&mut Screen::new("zk://a".into()), width, height);
            }
        }
    }

    #[test]
    fn trouble_is_shown_over_what_was_known() {
        let mut screen = screen();
        screen.on_told(Err("no answer".into()));
        let shown = picture(&mut screen, 80, 24);
        assert_eq!(shown[0], " what follows may be old: no answer");
        assert!(shown[4].starts_with("alone "));
    }
}
