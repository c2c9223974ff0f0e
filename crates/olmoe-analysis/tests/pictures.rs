//! Pictures as files: whole, not blank, and of any data.

use std::path::Path;

use olmoe_analysis::{Colour, Curve, Curves, HeatMap, MAX_CELLS, MAX_CURVES, Panel, Picture, PictureError, Scale};

/// Where `OLMOE_PICTURES` says, for looking at them.
fn keep(name: &str, picture: &Picture) {
    if let Ok(folder) = std::env::var("OLMOE_PICTURES") {
        for extension in ["png", "svg"] {
            picture.write(&Path::new(&folder).join(format!("{name}.{extension}"))).unwrap();
        }
    }
}

/// Tags are closed in turn, attributes are quoted, texts hold no bare mark: enough of XML for what is written here.
fn check_xml(text: &str) {
    let mut open = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let between = &rest[..at];
        assert!(!between.contains('>'), "{between}");
        for entity in between.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|known| entity.starts_with(known)), "{entity}");
        }
        assert!(!between.chars().any(|letter| letter.is_control() && letter != '\n'), "{between:?}");
        let end = rest[at..].find('>').expect("a tag has an end") + at;
        let tag = &rest[at + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(tag.split([' ', '\n']).next().unwrap());
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
}

/// Width, height, and the share of pixels that are not white.
fn check_png(bytes: &[u8]) -> (u32, u32, f64) {
    let image = tiny_skia::Pixmap::decode_png(bytes).unwrap();
    let inked = image.pixels().iter().filter(|pixel| (pixel.red(), pixel.green(), pixel.blue()) != (255, 255, 255));
    let share = inked.count() as f64 / image.pixels().len() as f64;
    (image.width(), image.height(), share)
}

fn check(name: &str, picture: &Picture) {
    keep(name, picture);
    check_xml(&picture.to_svg());
    assert_eq!(picture.to_svg(), picture.clone().to_svg());
}

/// As PNG, too, which takes longer.
fn check_both(name: &str, picture: &Picture) {
    check(name, picture);
    let (width, height, inked) = check_png(&picture.to_png().unwrap());
    assert!(width > 200 && height > 200 && (0.005..0.9).contains(&inked), "{name}: {width} × {height}, {inked}");
}

fn noise(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5
}

fn run(number: u64, steps: usize) -> [Curve; 3] {
    let mut seed = number;
    let points =
        |f: &mut dyn FnMut(f64) -> f64| (1..=steps).map(|step| (step as f64, f(step as f64))).collect::<Vec<_>>();
    let noisy = points(&mut |step| 2.6 + number as f64 * 0.15 + 8.0 * (-step / 300.0).exp() + noise(&mut seed) * 0.6);
    let mut mean = noisy[0].1;
    let smooth = noisy
        .iter()
        .map(|(x, y)| {
            (*x, {
                mean += (y - mean) * 0.05;
                mean
            })
        })
        .collect();
    let warm = 100.0;
    let rate = points(&mut |step| {
        if step < warm {
            4e-4 * step / warm
        } else {
            4e-5 + 1.8e-4 * (1.0 + (std::f64::consts::PI * (step - warm) / (steps as f64 - warm)).cos())
        }
    });
    let load = points(&mut |step| 1.2 + number as f64 * 0.1 + 3.0 * (-step / 150.0).exp() + noise(&mut seed) * 0.2);
    [
        Curve { points: smooth, behind: noisy },
        Curve { points: rate, behind: Vec::new() },
        Curve { points: load, behind: Vec::new() },
    ]
}

fn curves(runs: u64, steps: usize) -> Curves {
    let mut panels: Vec<Panel> = ["train/CrossEntropyLoss", "optim/learning_rate_group0", "train/MaxExpertLoad"]
        .map(|name| Panel { name: name.to_owned(), ..Panel::default() })
        .into();
    for number in 0..runs {
        for (panel, curve) in panels.iter_mut().zip(run(number, steps)) {
            panel.curves.push(curve);
        }
    }
    let names = (0..runs).map(|number| format!("ablations/load-balance-{number}")).collect();
    Curves { title: "Load balancing & <aux> loss".into(), x_label: "step".into(), names, panels, ..Curves::default() }
}

#[test]
fn curves_of_one_run_and_of_many() {
    check_both("one", &curves(1, 300).draw().unwrap());
    check("three", &curves(3, 3000).draw().unwrap());
    let many = curves(12, 500).draw().unwrap();
    check("many", &many);
    assert!(many.to_svg().contains("stroke-dasharray"), "more runs than colours");
    let same = curves(2, 50).draw().unwrap().to_svg();
    assert_eq!(same.matches("stroke-dasharray=\"9 9\"").count(), 1, "one learning rate lies over the other");
    let mut log = curves(2, 3000);
    log.x_scale = Scale::Log;
    log.panels.iter_mut().for_each(|panel| panel.scale = Scale::Log);
    check("log", &log.draw().unwrap());
    let svg = curves(2, 10).draw().unwrap().to_svg();
    assert!(svg.contains("Load balancing &amp; &lt;aux&gt; loss") && svg.contains(">ablations/load-balance-1</text>"));
}

#[test]
fn a_long_run_draws_no_more_than_the_screen_shows() {
    let size = |steps| curves(1, steps).draw().unwrap().to_svg().len();
    let (short, long) = (size(10_000), size(60_000));
    assert!(long < short * 12 / 10 && long < 400_000, "{short} {long}");
}

#[test]
fn any_data_can_be_drawn() {
    let values = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 5e-324, 0.0, -1.0, 1.0];
    for scale in [Scale::Linear, Scale::Log] {
        for first in values {
            for second in values {
                let points = vec![(first, second), (second, first), (1.0, first)];
                let panel = Panel { scale, curves: vec![Curve { points, behind: Vec::new() }], ..Panel::default() };
                let picture = Curves { x_scale: scale, panels: vec![panel], ..Curves::default() }.draw().unwrap();
                check_xml(&picture.to_svg());
                assert!(!picture.to_svg().contains("NaN") && !picture.to_svg().contains("inf"));
            }
        }
    }
    let name = "\u{0}\u{1b}]&<\"'>\u{ffff}真🦀".repeat(50);
    let mut odd = curves(2, 3);
    (odd.title, odd.names, odd.panels[0].name) = (name.clone(), vec![name.clone(), name.clone()], name);
    odd.panels[1].curves.clear();
    check_both("odd", &odd.draw().unwrap());
}

#[test]
fn too_much_or_nothing_is_refused() {
    assert!(matches!(Curves::default().draw(), Err(PictureError::Count { what: "panels", found: 0, .. })));
    let many = curves(MAX_CURVES as u64 + 1, 2).draw().unwrap_err().to_string();
    assert_eq!(many, "curves: 65; expected from 1 to 64 in one picture");
    let map = |rows: usize, columns: usize, values: usize| HeatMap {
        rows: vec!["r".into(); rows],
        columns: vec!["c".into(); columns],
        values: vec![1.0; values],
        ..HeatMap::default()
    };
    assert!(map(0, 3, 0).draw().is_err() && map(MAX_CELLS, 2, MAX_CELLS * 2).draw().is_err());
    let error = map(2, 3, 5).draw().unwrap_err().to_string();
    assert_eq!(error, "values: 5; expected 2 rows of 3, 6 in all");
    assert!(matches!(map(MAX_CELLS, 1, MAX_CELLS).draw(), Err(PictureError::Size { .. })));
    assert!(Picture::new(f32::NAN, 5.0).is_err() && Picture::new(0.0, 5.0).is_err() && Picture::new(5.0, 1e9).is_err());
    let picture = Picture::new(5.0, 5.0).unwrap();
    for (name, expected) in
        [("a.pdf", "written as .svg or .png"), ("svg", "written as .svg or .png"), ("/no/where/a.svg", "cannot write")]
    {
        let error = picture.write(Path::new(name)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
}

#[test]
fn heat_maps_of_few_and_many_cells() {
    let mut seed = 7;
    let map = HeatMap {
        title: "Experts of layer 7 by kind of text".into(),
        row_label: String::new(),
        rows: ["GitHub", "arXiv", "Wikipedia", "Books", "C4"].map(str::to_owned).into(),
        column_label: "expert".into(),
        columns: (0..16).map(|expert| expert.to_string()).collect(),
        values: (0..80).map(|_| 12.5 * (1.0 + 1.8 * noise(&mut seed))).collect(),
        value_label: "% of tokens".into(),
        middle: Some(12.5),
        decimals: Some(1),
    };
    check_both("kinds", &map.draw().unwrap());
    let mut values: Vec<f64> =
        (0..1024).map(|at| (noise(&mut seed) + 0.6).powi(4) * (1.0 + (at % 64) as f64 / 20.0)).collect();
    values[77] = f64::NAN;
    let map = HeatMap {
        title: "Load".into(),
        row_label: "layer".into(),
        rows: (0..16).map(|layer| layer.to_string()).collect(),
        column_label: "expert".into(),
        columns: (0..64).map(|expert| expert.to_string()).collect(),
        values,
        value_label: "share of mean".into(),
        middle: None,
        decimals: None,
    };
    check("layers", &map.draw().unwrap());
    let words = ["the", "of the people", "model", "gradient descent", "é真", "expert"].map(str::to_owned);
    let map = HeatMap {
        rows: words.clone().into(),
        columns: words.into(),
        values: vec![0.0; 36],
        decimals: Some(0),
        ..HeatMap::default()
    };
    check("constant", &map.draw().unwrap());
    for value in [f64::NAN, f64::MAX, f64::MIN, f64::INFINITY, 0.0, -3.0] {
        for middle in [None, Some(0.0), Some(f64::MAX), Some(f64::NAN), Some(-3.0)] {
            let mut odd = map.clone();
            (odd.values[3], odd.middle) = (value, middle);
            check_xml(&odd.draw().unwrap().to_svg());
        }
    }
}

#[test]
fn text_has_letters_without_fonts_of_the_machine() {
    use olmoe_analysis::Anchor;
    let ink = |text: &str| {
        let mut picture = Picture::new(200.0, 40.0).unwrap();
        picture.text(text, 10.0, 30.0, 20.0, Anchor::Start, Colour::INK);
        check_png(&picture.to_png().unwrap()).2
    };
    assert_eq!(ink("   "), 0.0);
    assert!(ink("loss 4.213") > 1.5 * ink("loss") && ink("i") < ink("m"));
    assert!(Picture::text_width("mmm", 12.0) > 2.0 * Picture::text_width("iii", 12.0));
    assert_eq!(Picture::fitting("short", 12.0, 100.0), "short");
    let cut = Picture::fitting(&"long ".repeat(100), 12.0, 100.0);
    assert!(cut.ends_with('…') && Picture::text_width(&cut, 12.0) <= 101.0, "{cut}");
}
