//! `shell`: the interactive guest.

mod commands;

use lockstep_line::{Editor, Key};
use lockstep_runtime::{Args, console, println};

pub fn main(_: &Args) -> u8 {
    println!("lockstep guest shell; `help` lists the commands");
    let mut editor = Editor::new();
    loop {
        match console::read_line(&mut editor, "lockstep> ") {
            Key::Line(line) => {
                let words: alloc::vec::Vec<&str> = line.split_ascii_whitespace().collect();
                if let Some(code) = commands::run(&words) {
                    return code;
                }
            }
            Key::Interrupt => {}
            Key::EndOfInput => {
                println!("exit");
                return 0;
            }
        }
    }
}
