//! What `lockstep top` shows, and what its keys do to it. No terminal here.

use std::cmp::Ordering;
use std::sync::Arc;

use ratatui::crossterm::event::{KeyCode, KeyModifiers};
use ratatui::widgets::TableState;

use crate::cli::cluster::{Room, backups, lag, runs_on, status_of};
use crate::cluster::figures::Figures;
use crate::cluster::view::{View, Vm};
use crate::console::status::Status;

/// The columns by which VMs can be sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The VM's name.
    Name,
    /// How it is, the worst first.
    Condition,
    /// Its generation.
    Generation,
    /// The host that runs it.
    Host,
    /// The host that stands by.
    Backup,
    /// How far its backup is behind.
    Lag,
    /// Outputs that wait.
    Held,
    /// Log bytes a second.
    Log,
}

/// All of them, as they stand.
pub const COLUMNS: [Column; 8] = [
    Column::Name,
    Column::Condition,
    Column::Generation,
    Column::Host,
    Column::Backup,
    Column::Lag,
    Column::Held,
    Column::Log,
];

/// Where the keys go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Focus {
    /// The table of VMs.
    Vms,
    /// The table of hosts.
    Hosts,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To be drawn.
    Draw,
    /// To end.
    Quit,
}

/// What is shown.
pub struct Screen {
    /// The ensemble.
    pub location: String,
    /// The cluster, as it was read last.
    pub view: Option<Arc<View>>,
    /// Why that may be old.
    pub trouble: Option<String>,
    /// The figures.
    pub figures: Figures,
    /// By what the VMs are sorted, and whether from the end.
    pub sort: (Column, bool),
    /// Where the keys go.
    pub focus: Focus,
    /// The VM that is selected, by name: it stays so wherever it moves.
    selected_vm: Option<String>,
    selected_host: Option<String>,
    /// How far the tables are scrolled.
    pub states: [TableState; 2],
}

impl Screen {
    /// An empty one.
    pub fn new(location: String) -> Self {
        Screen {
            location,
            view: None,
            trouble: None,
            figures: Figures::new(),
            sort: (Column::Name, false),
            focus: Focus::Vms,
            selected_vm: None,
            selected_host: None,
            states: [TableState::new(), TableState::new()],
        }
    }

    /// The ensemble has told something.
    pub fn on_told(&mut self, told: Result<Arc<View>, String>) {
        match told {
            Ok(view) => (self.view, self.trouble) = (Some(view), None),
            // What was read last is still the best that is known.
            Err(why) => self.trouble = Some(why),
        }
    }

    /// The sides have answered.
    pub fn on_figures(&mut self, figures: Figures) {
        self.figures = figures;
    }

    /// A key was pressed.
    pub fn on_key(&mut self, code: KeyCode, modifiers: KeyModifiers) -> Wish {
        match code {
            KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => return Wish::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.step(|at, _| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.step(|at, last| (at + 1).min(last)),
            KeyCode::PageUp => self.step(|at, _| at.saturating_sub(10)),
            KeyCode::PageDown => self.step(|at, last| (at + 10).min(last)),
            KeyCode::Home | KeyCode::Char('g') => self.step(|_, _| 0),
            KeyCode::End | KeyCode::Char('G') => self.step(|_, last| last),
            KeyCode::Tab | KeyCode::BackTab => {
                self.focus = match self.focus {
                    Focus::Vms => Focus::Hosts,
                    Focus::Hosts => Focus::Vms,
                };
            }
            KeyCode::Char('s') => self.sort_by(1),
            KeyCode::Char('S') => self.sort_by(COLUMNS.len() - 1),
            KeyCode::Char('r') => self.sort.1 = !self.sort.1,
            _ => {}
        }
        Wish::Draw
    }

    fn sort_by(&mut self, further: usize) {
        let at = COLUMNS.iter().position(|column| *column == self.sort.0).unwrap_or(0);
        self.sort.0 = COLUMNS[(at + further) % COLUMNS.len()];
    }

    /// The names in the table that the keys go to, in order.
    fn names(&self) -> Vec<String> {
        match (self.focus, &self.view) {
            (_, None) => Vec::new(),
            (Focus::Vms, Some(_)) => self.vms().into_iter().map(|(name, _)| name.to_owned()).collect(),
            (Focus::Hosts, Some(view)) => view.hosts.keys().cloned().collect(),
        }
    }

    fn step(&mut self, to: impl Fn(usize, usize) -> usize) {
        let names = self.names();
        let Some(last) = names.len().checked_sub(1) else { return };
        let selected = match self.focus {
            Focus::Vms => &mut self.selected_vm,
            Focus::Hosts => &mut self.selected_host,
        };
        // Until somebody selects, the first one is.
        let at = selected.as_ref().and_then(|selected| names.iter().position(|name| name == selected)).unwrap_or(0);
        *selected = Some(names[to(at, last)].clone());
    }

    /// The VM that is selected, or the first.
    pub fn selected_vm(&self) -> Option<(String, Vm)> {
        let vms = self.vms();
        let found = vms.iter().find(|(name, _)| Some(*name) == self.selected_vm.as_deref()).or(vms.first());
        found.map(|(name, vm)| ((*name).to_owned(), (*vm).clone()))
    }

    /// The host that is selected, or the first.
    pub fn selected_host(&self) -> Option<String> {
        let hosts = &self.view.as_ref()?.hosts;
        let selected = self.selected_host.clone().filter(|name| hosts.contains_key(name));
        selected.or_else(|| hosts.keys().next().cloned())
    }

    /// What the side that runs a VM has answered.
    pub fn status<'a>(&'a self, vm: &Vm) -> Option<&'a Status> {
        status_of(&self.figures, vm.runner()?)
    }

    /// The VMs, sorted.
    pub fn vms(&self) -> Vec<(&str, &Vm)> {
        let Some(view) = &self.view else { return Vec::new() };
        let mut vms: Vec<(&str, &Vm)> = view.vms.iter().map(|(name, vm)| (name.as_str(), vm)).collect();
        let (column, reverse) = self.sort;
        // Those without a figure come last, also from the end.
        let of_figures = |figure: &dyn Fn(&Vm) -> Option<u64>, one: &Vm, other: &Vm| match (figure(one), figure(other))
        {
            (Some(one), Some(other)) if reverse => other.cmp(&one),
            (Some(one), Some(other)) => one.cmp(&other),
            (one, other) => other.is_some().cmp(&one.is_some()),
        };
        let shown = |of: &dyn Fn(&Vm, &Figures, Room) -> String, vm: &Vm| of(vm, &self.figures, Room::Narrow);
        let turned = |order: Ordering| if reverse { order.reverse() } else { order };
        vms.sort_by(|(one_name, one), (other_name, other)| {
            let order = match column {
                Column::Name => turned(one_name.cmp(other_name)),
                Column::Condition => turned(one.condition().cmp(&other.condition())),
                Column::Generation => turned(one.generation().cmp(&other.generation())),
                Column::Host => turned(shown(&runs_on, one).cmp(&shown(&runs_on, other))),
                Column::Backup => turned(shown(&backups, one).cmp(&shown(&backups, other))),
                Column::Lag => of_figures(&|vm| lag(vm, &self.figures), one, other),
                Column::Held => of_figures(&|vm| Some(self.status(vm)?.outputs_held), one, other),
                Column::Log => of_figures(&|vm| Some(self.status(vm)?.log_bytes_per_s), one, other),
            };
            order.then_with(|| one_name.cmp(other_name))
        });
        vms
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::arbiter::Claim;
    use crate::cluster::records::{Host, Side, VERSION};
    use crate::cluster::view::HostView;
    use crate::console::status::Role;

    /// A cluster of five VMs, and what their sides answer.
    pub fn cluster() -> (View, Figures) {
        let side = |host: &str, role, state: &str, generation, port| Side {
            version: VERSION,
            host: host.into(),
            role,
            state: state.into(),
            generation,
            control: format!("{host}:{port}"),
            memory_mib: Some(64),
            cpu: "kind".into(),
            ..Side::default()
        };
        let vm = |generation, sides: &[Side]| {
            let register = Claim { generation, host: 1, host_name: "alpha".into(), shared_with: None };
            Vm { register: Some(register), sides: sides.to_vec(), ..Vm::default() }
        };
        let primary = |port| side("alpha", Role::Primary, "protected", 1, port);
        let backup = |port| side("beta", Role::Backup, "following", 1, port);
        let mut view = View::default();
        view.vms.insert("web".into(), vm(1, &[primary(1), backup(1)]));
        view.vms.insert("db".into(), vm(1, &[primary(2), backup(2)]));
        view.vms.insert("alone".into(), vm(3, &[side("beta", Role::Unprotected, "unprotected", 3, 3)]));
        view.vms.insert("gone".into(), vm(7, &[]));
        view.vms.insert("new".into(), vm(1, &[side("alpha", Role::Waiting, "waiting", 1, 4)]));
        let agent = Host { version: VERSION, name: "gamma".into(), capacity_mib: 4096, ..Host::default() };
        view.hosts.insert("gamma".into(), HostView { record: Some(agent), ..HostView::default() });
        view.put_together();
        let answer =
            |lag, log| Status { execution_lag_ns: lag, log_bytes_per_s: log, outputs_held: 2, ..Status::default() };
        let mut figures = Figures::new();
        figures.insert("alpha:1".into(), Ok(Box::new(answer(Some(2_000_000), 10))));
        figures.insert("beta:1".into(), Err("it does not answer".into()));
        figures.insert("alpha:2".into(), Ok(Box::new(answer(Some(500), 2_500_000))));
        figures.insert("beta:3".into(), Ok(Box::new(answer(None, 20))));
        (view, figures)
    }

    pub fn screen() -> Screen {
        let (view, figures) = cluster();
        let mut screen = Screen::new("zk://a:2181/lockstep".into());
        screen.on_told(Ok(Arc::new(view)));
        screen.on_figures(figures);
        screen
    }

    fn press(screen: &mut Screen, keys: &str) -> Wish {
        let mut wish = Wish::Draw;
        for key in keys.chars() {
            let code = match key {
                '\t' => KeyCode::Tab,
                key => KeyCode::Char(key),
            };
            wish = screen.on_key(code, KeyModifiers::NONE);
        }
        wish
    }

    fn order(screen: &Screen) -> String {
        screen.vms().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn vms_are_sorted_by_any_column() {
        let mut screen = screen();
        let mut orders = Vec::new();
        for _ in COLUMNS {
            let before = order(&screen);
            press(&mut screen, "r");
            orders.push((before, order(&screen)));
            press(&mut screen, "rs");
        }
        let expected = [
            ("alone db gone new web", "web new gone db alone"),
            ("gone new alone db web", "db web alone new gone"),
            ("db new web alone gone", "gone alone db new web"),
            ("new gone db web alone", "alone db web gone new"),
            ("alone gone new db web", "web db alone gone new"),
            // Without a figure at the end, either way.
            ("db web alone gone new", "web db alone gone new"),
            ("alone db web gone new", "alone db web gone new"),
            ("web alone db gone new", "db alone web gone new"),
        ];
        for ((found, expected), column) in orders.iter().zip(expected).zip(COLUMNS) {
            assert_eq!((found.0.as_str(), found.1.as_str()), expected, "{column:?}");
        }
        assert_eq!(screen.sort, (Column::Name, false), "around once");
        press(&mut screen, "S");
        assert_eq!(screen.sort.0, Column::Log);
    }

    #[test]
    fn what_is_selected_stays_so_wherever_it_moves() {
        let mut screen = screen();
        let vm = |screen: &Screen| screen.selected_vm().unwrap().0;
        assert_eq!(vm(&screen), "alone");
        press(&mut screen, "jj");
        assert_eq!(vm(&screen), "gone");
        press(&mut screen, "sk");
        assert_eq!(vm(&screen), "gone", "it is the first by condition");
        press(&mut screen, "G");
        assert_eq!(vm(&screen), "web");
        press(&mut screen, "j");
        assert_eq!(vm(&screen), "web", "there is nothing below");
        // It is taken away.
        let (mut view, _) = cluster();
        view.vms.remove("web");
        screen.on_told(Ok(Arc::new(view)));
        assert_eq!(vm(&screen), "gone");
        press(&mut screen, "\tj");
        assert_eq!((screen.selected_host().unwrap().as_str(), vm(&screen).as_str()), ("beta", "gone"));
        press(&mut Screen::new(String::new()), "jkgG\tj");
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        let mut screen = screen();
        assert_eq!(press(&mut screen, "x"), Wish::Draw);
        assert_eq!(press(&mut screen, "q"), Wish::Quit);
        assert_eq!(screen.on_key(KeyCode::Esc, KeyModifiers::NONE), Wish::Quit);
        assert_eq!(screen.on_key(KeyCode::Char('c'), KeyModifiers::CONTROL), Wish::Quit);
        assert_eq!(screen.on_key(KeyCode::Char('c'), KeyModifiers::NONE), Wish::Draw);
    }
}
