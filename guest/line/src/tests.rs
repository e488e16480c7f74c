//! The editor against a terminal that shows what is echoed.

use super::{Editor, Key};

/// Types `bytes`; the keys that came out, and the terminal's lines.
fn type_all(bytes: &[u8]) -> (Vec<Key>, Vec<String>) {
    let mut editor = Editor::new();
    let mut terminal = Terminal::default();
    let keys = bytes.iter().filter_map(|&byte| editor.type_byte(byte, &mut |echo| terminal.show(echo))).collect();
    (keys, terminal.finish())
}

/// Lines of characters, with backspace.
#[derive(Default)]
struct Terminal {
    bytes: Vec<u8>,
}

impl Terminal {
    fn show(&mut self, echo: &[u8]) {
        self.bytes.extend(echo);
    }

    fn finish(self) -> Vec<String> {
        let mut lines = vec![Vec::new()];
        let mut column = 0;
        for c in String::from_utf8(self.bytes).unwrap().chars() {
            let line = lines.last_mut().unwrap();
            match c {
                '\n' => lines.push(Vec::new()),
                '\r' => column = 0,
                '\x08' => column -= 1,
                '\x07' => {}
                _ => {
                    line.truncate(column);
                    line.push(c);
                    column += 1;
                }
            }
        }
        lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_string()).collect()
    }
}

fn line(text: &str) -> Key {
    Key::Line(text.to_string())
}

#[test]
fn a_line_is_what_the_terminal_shows() {
    assert_eq!(type_all(b"count 3\r"), (vec![line("count 3")], vec!["count 3".into(), "".into()]));
}

#[test]
fn return_line_feed_and_both_end_one_line_each() {
    assert_eq!(type_all(b"a\rb\nc\r\nd\r\r").0, [line("a"), line("b"), line("c"), line("d"), line("")]);
}

#[test]
fn backspace_takes_a_character_however_long() {
    let (keys, lines) = type_all("aäx\x7f\x08ß\x08b\r".as_bytes());
    assert_eq!((keys, lines[0].as_str()), (vec![line("ab")], "ab"));
    assert_eq!(type_all(b"\x7f\x7fa\r").0, [line("a")], "nothing to take");
}

#[test]
fn control_u_takes_the_line() {
    let (keys, lines) = type_all("größe\x15ok\r".as_bytes());
    assert_eq!((keys, lines[0].as_str()), (vec![line("ok")], "ok"));
}

#[test]
fn control_c_and_control_d() {
    assert_eq!(type_all(b"abc\x03d\r").0, [Key::Interrupt, line("d")]);
    assert_eq!(type_all(b"a\x04\r\x04").0, [line("a"), Key::EndOfInput], "only on an empty line");
}

#[test]
fn escape_sequences_and_control_characters_do_nothing() {
    assert_eq!(type_all(b"a\x1b[A\x1b[1;5C\x1bOPb\x01\x09\x1bxc\r").0, [line("abc")]);
}

#[test]
fn a_line_has_an_end() {
    let mut long = vec![b'x'; Editor::MAX + 10];
    long.push(b'\r');
    assert_eq!(type_all(&long).0, [line(&"x".repeat(Editor::MAX))]);
}

#[test]
fn any_bytes_give_valid_text() {
    let noise: Vec<u8> = (0..=255).rev().chain([b'\r']).collect();
    let mut editor = Editor::new();
    let keys = noise.iter().filter_map(|&byte| editor.type_byte(byte, &mut |_| {})).count();
    assert!(keys >= 2);
}
