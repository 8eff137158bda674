use super::*;

const NOW: Duration = Duration::ZERO;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn request(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x82, 0x87, 0x84, 0x41, 1, b'a'])
}

/// A connection that has begun.
fn begun() -> Frames {
    let mut frames = Frames::default();
    assert_eq!(frames.client(PREFACE, NOW), Ruling::Pass(PREFACE.len()));
    frames
}

/// Shows one frame after the other, at most `most`; how many went on, and what ended it.
fn run(frames: &mut Frames, most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> (usize, Option<Abuse>) {
    for number in 0..most {
        let bytes = next(number);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match frames.client(rest, NOW) {
                Ruling::Pass(count) => rest = &rest[count..],
                Ruling::More => panic!("a whole frame was shown"),
                Ruling::End(abuse) => return (number, Some(abuse)),
            }
        }
    }
    (most, None)
}

fn stream(number: usize) -> u32 {
    2 * number as u32 + 1
}

#[test]
fn a_head_has_its_time_whatever_else_is_open() {
    let at = Duration::from_secs;
    let head = frame(HEADERS, END_STREAM, 3, &[0x82, 0x87, 0x84]);
    let rest = frame(CONTINUATION, END_HEADERS, 3, &[0x41, 1, b'a']);
    // Within a frame, and between two.
    for cut in [HEADER, HEADER + 1, head.len()] {
        let mut frames = begun();
        assert_eq!(run(&mut frames, 1, |_| request(1)), (1, None));
        assert_eq!(frames.client(&frame(6, 0, 0, &[0; 8]), at(100)), Ruling::Pass(HEADER + 8));
        assert_eq!(frames.client(&head[..cut], at(100)), Ruling::Pass(cut));
        let whole = [&head[cut..], &rest].concat();
        let mut in_time = frames.clone();
        assert_eq!(in_time.client(&whole, at(159)), Ruling::Pass(whole.len()), "{cut}");
        assert_eq!(in_time.client(&request(5), at(300)), Ruling::Pass(request(5).len()), "{cut}");
        assert_eq!(frames.client(&whole, at(161)), Ruling::End(Abuse::SlowHead), "{cut}");
    }
}

#[test]
fn rapid_resets_end_the_connection() {
    let resets =
        |number| [request(stream(number)), frame(RST_STREAM, 0, stream(number), &[0, 0, 0, 8])].concat();
    assert_eq!(run(&mut begun(), 10_000, resets), (200, Some(Abuse::Resets)));
}

#[test]
fn resets_that_the_server_is_made_to_send_count_alike() {
    let mut frames = begun();
    let provoked = |frames: &mut Frames, number| {
        let (went, ended) = run(frames, 1, |_| request(stream(number)));
        frames.server(&frame(RST_STREAM, 0, stream(number), &[0, 0, 0, 1]));
        (went, ended)
    };
    let ended =
        (0..10_000).map(|number| provoked(&mut frames, number)).position(|(_, ended)| ended.is_some());
    assert_eq!(ended, Some(201));
    let mut frames = begun();
    for number in 0..10_000 {
        assert_eq!(run(&mut frames, 1, |_| request(stream(number))), (1, None));
        frames.server(&frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &[0x88]));
        frames.server(&frame(RST_STREAM, 0, stream(number), &[0, 0, 0, 0]));
    }
}

#[test]
fn completed_requests_pay_for_resets() {
    let mut frames = begun();
    for number in 0..10_000 {
        assert_eq!(run(&mut frames, 1, |_| request(stream(2 * number))), (1, None), "{number}");
        frames.server(&frame(HEADERS, END_HEADERS | END_STREAM, stream(2 * number), &[0x88]));
        let cancelled = stream(2 * number + 1);
        let cancel = [request(cancelled), frame(RST_STREAM, 0, cancelled, &[0, 0, 0, 8])].concat();
        assert_eq!(run(&mut frames, 1, |_| cancel.clone()), (1, None), "{number}");
    }
}

#[test]
fn control_frames_alone_end_the_connection_before_ten_thousand() {
    for (name, flood) in [
        ("ping", frame(6, 0, 0, &[0; 8])),
        ("ping ack", frame(6, ACK, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("settings of the table size", frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0])),
        ("settings ack", frame(SETTINGS, ACK, 0, &[])),
        ("priority", frame(2, 0, 3, &[0, 0, 0, 0, 16])),
        ("window", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("empty data", frame(DATA, 0, 1, &[])),
        ("padding alone", frame(DATA, PADDED, 1, &[3, 0, 0, 0])),
        ("unknown", frame(0x77, 0, 0, b"grease")),
        ("reset of nothing", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
    ] {
        let (went, ended) = run(&mut begun(), 20_000, |_| flood.clone());
        assert_eq!(ended, Some(Abuse::Control), "{name}");
        assert!((1_000..10_000).contains(&went), "{name}: {went}");
    }
}

#[test]
fn heads_are_bounded_in_bytes_and_frames() {
    let begin = |payload: &[u8]| frame(HEADERS, 0, 1, payload);
    for (name, piece, most) in [("empty", 0, 17), ("one byte", 1, 257), ("large", 16 * 1024, 3)] {
        let piece = vec![0; piece];
        let (went, ended) = run(&mut begun(), 10_000, |number| match number {
            0 => begin(&[0x82]),
            _ => frame(CONTINUATION, 0, 1, &piece),
        });
        assert_eq!((went, ended), (most, Some(Abuse::Continuations)), "{name}");
    }
    let whole =
        [begin(&[0x82]), frame(CONTINUATION, 0, 1, &[0; 7_680]), frame(CONTINUATION, END_HEADERS, 1, &[0])];
    assert_eq!(run(&mut begun(), 3, |number| whole[number].clone()), (3, None));
}

#[test]
fn table_size_changes_are_bounded_in_one_head_and_over_all() {
    let head = |block: &[u8]| frame(HEADERS, END_HEADERS, 1, block);
    assert_eq!(run(&mut begun(), 1, |_| head(&[0x20, 0x3f, 0xe1, 0x1f, 0x82])), (1, None));
    let (_, ended) = run(&mut begun(), 2, |_| head(&[0x20, 0x3f, 0xe1, 0x1f, 0x20, 0x82]));
    assert_eq!(ended, Some(Abuse::TableSizes));
    let padded =
        frame(HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, 1, &[0, 0x20, 0x20, 0x20, 0x20, 0x20, 0x82]);
    assert_eq!(run(&mut begun(), 1, |_| padded.clone()), (1, None), "priority is no table size");
}

#[test]
fn small_messages_each_acknowledged_never_run_out() {
    let mut frames = begun();
    assert_eq!(run(&mut frames, 1, |_| request(1)), (1, None));
    frames.server(&frame(HEADERS, END_HEADERS, 1, &[0x88]));
    for number in 0..50_000 {
        frames.server(&frame(DATA, 0, 1, &[0; 10]));
        let answer = [
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 10]),
            frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 10]),
            frame(6, 0, 0, &[0; 8]),
        ]
        .concat();
        assert_eq!(run(&mut frames, 1, |_| answer.clone()), (1, None), "{number}");
    }
}

#[test]
fn data_drawn_byte_by_byte_out_of_a_closed_window_pays_by_its_bytes() {
    let mut frames = begun();
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    run(&mut frames, 1, |_| [settings.clone(), request(1)].concat());
    frames.server(&frame(HEADERS, END_HEADERS, 1, &[0x88]));
    let ended = (0..20_000).position(|_| {
        let (_, ended) = run(&mut frames, 1, |_| frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]));
        frames.server(&frame(DATA, 0, 1, b"x"));
        ended.is_some()
    });
    assert!(ended.is_some_and(|at| at < 10_000), "{ended:?}");
}

#[test]
fn idle_connections_with_pings_live_by_time() {
    let mut frames = begun();
    for second in 0..100_000_u64 {
        let ping = frame(6, 0, 0, &[0; 8]).repeat(10);
        assert_eq!(frames.client(&ping, Duration::from_secs(second)), Ruling::Pass(ping.len()));
    }
}

#[test]
fn every_split_is_counted_alike() {
    let bytes = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0, 0, 4, 0, 1, 0, 0]),
        frame(HEADERS, PADDED, 1, &[1, 0x20, 0x82, 0]),
        frame(CONTINUATION, END_HEADERS, 1, &[0x87]),
        frame(DATA, PADDED, 1, &[2, b'x', 0, 0]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 4, 0]),
        frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
    ]
    .concat();
    let show = |pieces: &[&[u8]]| {
        let (mut frames, mut waiting) = (Frames::default(), Vec::new());
        for piece in pieces {
            waiting.extend_from_slice(piece);
            while let Ruling::Pass(count) = frames.client(&waiting, NOW) {
                waiting.drain(..count);
            }
        }
        assert!(waiting.is_empty());
        (frames.control, frames.resets, frames.window, frames.initial_window)
    };
    let whole = show(&[&bytes]);
    for at in 0..=bytes.len() {
        assert_eq!(show(&[&bytes[..at], &bytes[at..]]), whole, "split at {at}");
    }
    assert_eq!(show(&bytes.iter().map(std::slice::from_ref).collect::<Vec<_>>()), whole);
}

#[test]
fn what_is_no_preface_is_refused() {
    let mut frames = Frames::default();
    assert_eq!(frames.client(b"PRI * HTTP/2.0\r\n\r\nXX", NOW), Ruling::End(Abuse::Preface));
}
