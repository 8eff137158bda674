//! The embedded demo.
fn main() {
    lab::helper::serve_if_asked();
}
