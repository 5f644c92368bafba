package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

func newScale(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "scale", Short: "Show and set how an app's machines come and go"}
	show := g.askApp("show [APP]", "Show an app's scale settings and counts", func(c *call, app string) error {
		s, err := c.Scale(c.ctx, app)
		if err != nil {
			return err
		}
		return c.sayScale(s)
	})
	cmd.AddCommand(show, newScaleSet(g), newScaleCount(g))
	return cmd
}

func (c *call) sayScale(s api.Scale) error {
	return c.say(s, func(w io.Writer) { scaleText(w, s) })
}

// newScaleCount is Fly's verb: so many machines of each group are kept awake.
func newScaleCount(g *globals) *cobra.Command {
	var app appFlag
	cmd := &cobra.Command{
		Use: "count N | GROUP=N…", Short: "Keep so many machines awake, of the app or of process groups", Args: cobra.MinimumNArgs(1),
		Long: `Keep so many machines awake, of the app or of process groups: their min. Where max is lower it is raised. More
machines still come when connections need them, up to max.`,
		Example: "  volant scale count 3\n  volant scale count web=3 worker=2",
		RunE: g.ask(func(c *call) error {
			name, err := app.of(nil)
			if err != nil {
				return err
			}
			counts, err := readCounts(c.args)
			if err != nil {
				return err
			}
			s, err := c.Scale(c.ctx, name)
			for i := 0; err == nil && i < len(counts); i++ {
				n := counts[i]
				p := api.ScalePatch{Min: &n.least}
				if n.least > maxOf(s, n.group) {
					p.Max = &n.least
				}
				s, err = c.SetGroupScale(c.ctx, name, n.group, p)
			}
			if err != nil {
				return err
			}
			return c.sayScale(s)
		}),
	}
	app.add(cmd)
	return cmd
}

// count is how many machines of a process group are kept awake; of the default one if it has no name.
type count struct {
	group string
	least int
}

func readCounts(args []string) ([]count, error) {
	var out []count
	for _, arg := range args {
		group, number, ok := strings.Cut(arg, "=")
		if !ok {
			group, number = "", arg
		}
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n > volant.MaxMachines || ok && group == "" {
			return nil, volant.Invalidf("%q is no count", arg).WithRemedy("write N or GROUP=N, such as web=3, from 0 to %d", volant.MaxMachines)
		}
		if slices.ContainsFunc(out, func(c count) bool { return c.group == group }) {
			return nil, volant.Invalidf("%q comes after a count of the same group", arg).WithRemedy("name each once")
		}
		out = append(out, count{group, n})
	}
	return out, nil
}

func maxOf(s api.Scale, group string) int {
	if g, ok := s.Groups[group]; ok {
		return g.Scale.WithDefaults().Max
	}
	return s.Scale.WithDefaults().Max
}

// scaleFlags are the settings of `volant scale set`.
type scaleFlags struct {
	group, onIdle, spill         string
	spillRTT                     time.Duration
	low, high, queue, perClient  int
	idle, keep, queueTime, drain time.Duration
	regions                      []string
	regionMin, regionMax         map[string]int
	wake                         bool
}

func newScaleSet(g *globals) *cobra.Command {
	var s scaleFlags
	cmd := g.askApp("set [APP]", "Change an app's scale settings; what is not named stays", func(c *call, app string) error {
		p, changed := s.patch(c.cmd.Flags().Changed)
		if !changed {
			return volant.Invalidf("nothing to set").WithRemedy("name a setting, such as --min 1; see `volant scale set --help`")
		}
		now, err := c.SetGroupScale(c.ctx, app, s.group, p)
		if err != nil {
			return err
		}
		return c.sayScale(now)
	})
	cmd.Example = "  volant scale set --app web --min 1 --max 20 --idle-timeout 5m\n  volant scale set --group worker --region-min ams=1,syd=1"
	f := cmd.Flags()
	f.StringVarP(&s.group, "group", "g", "", "the process group meant (default: the default one)")
	f.IntVar(&s.low, "min", 0, "machines kept awake, 0 or more")
	f.IntVar(&s.high, "max", 10, "machines in all, 1 to 1000")
	f.StringToIntVar(&s.regionMin, "region-min", nil, "machines kept awake by region, such as ams=1,syd=1")
	f.StringToIntVar(&s.regionMax, "region-max", nil, "machines in all by region")
	f.StringSliceVar(&s.regions, "regions", nil, "where machines may be made")
	f.IntVar(&s.queue, "max-queue", 1024, "connections that may wait for a machine, per edge")
	f.IntVar(&s.perClient, "max-per-client", 64, "of them per client /32 or /56")
	f.DurationVar(&s.idle, "idle-timeout", time.Minute, "calm before machines fall asleep, 1s or more")
	f.DurationVar(&s.keep, "keep", time.Hour, "sleep beyond min before a machine made by scaling is destroyed")
	f.DurationVar(&s.queueTime, "queue-timeout", 30*time.Second, "the longest a connection waits, at most 10m")
	f.DurationVar(&s.drain, "drain-timeout", 0, "clients of a draining machine are asked to leave after that; 0 never")
	f.StringVar(&s.onIdle, "on-idle", "suspend", "what an idle machine does: suspend, stop or off")
	f.StringVar(&s.spill, "spill", "soft", "when connections go to other regions: soft or hard, by the limit that all near have reached")
	f.DurationVar(&s.spillRTT, "spill-rtt", 50*time.Millisecond, "round trip up to which a machine is near, at most 1s")
	f.BoolVar(&s.wake, "wake", true, "connections wake and create machines")
	return cmd
}

// patch is what the flags that were given ask for.
func (s *scaleFlags) patch(given func(string) bool) (p api.ScalePatch, changed bool) {
	wakes, idle, keep, queueTime, drain := !s.wake, volant.Duration(s.idle), volant.Duration(s.keep), volant.Duration(s.queueTime), volant.Duration(s.drain)
	spillRTT := volant.Duration(s.spillRTT)
	for flag, set := range map[string]func(){
		"min":            func() { p.Min = &s.low },
		"max":            func() { p.Max = &s.high },
		"region-min":     func() { p.RegionMin = byRegion(s.regionMin) },
		"region-max":     func() { p.RegionMax = byRegion(s.regionMax) },
		"max-queue":      func() { p.MaxQueue = &s.queue },
		"max-per-client": func() { p.MaxPerPeer = &s.perClient },
		"on-idle":        func() { p.OnIdle = &s.onIdle },
		"spill":          func() { p.Spill = &s.spill },
		"spill-rtt":      func() { p.SpillRTT = &spillRTT },
		"wake":           func() { p.NoWake = &wakes },
		"idle-timeout":   func() { p.IdleTimeout = &idle },
		"keep":           func() { p.Keep = &keep },
		"queue-timeout":  func() { p.QueueTime = &queueTime },
		"drain-timeout":  func() { p.DrainAfter = &drain },
		"regions": func() {
			p.Regions = []volant.Region{}
			for _, r := range s.regions {
				p.Regions = append(p.Regions, volant.Region(r))
			}
		},
	} {
		if given(flag) {
			set()
			changed = true
		}
	}
	return p, changed
}

func byRegion(m map[string]int) map[volant.Region]int {
	out := map[volant.Region]int{}
	for r, n := range m {
		out[volant.Region(r)] = n
	}
	return out
}

func scaleText(w io.Writer, s api.Scale) {
	v := s.Scale
	table(w, [][]string{
		{"min", fmt.Sprint(v.Min)},
		{"max", fmt.Sprint(v.Max)},
		{"idle_timeout", v.IdleTimeout.String()},
		{"on_idle", v.OnIdle},
		{"keep", v.Keep.String()},
		{"max_queue", fmt.Sprint(v.MaxQueue)},
		{"max_per_client", fmt.Sprint(v.MaxPerPeer)},
		{"queue_timeout", v.QueueTime.String()},
		{"drain_timeout", v.DrainAfter.String()},
		{"wakes", fmt.Sprint(!v.NoWake)},
		{"region min", regionMap(v.RegionMin)},
		{"region max", regionMap(v.RegionMax)},
		{"now", fmt.Sprintf("%d awake of %d, %d connections, %d waiting", s.Awake, s.Total, s.Slots, s.Queued)},
	})
	if len(s.Groups) == 0 {
		return
	}
	rows := [][]string{{"OTHER GROUPS", "MIN", "MAX", "AWAKE", "MACHINES", "ON IDLE", "REGION MIN", "REGION MAX"}}
	for _, name := range slices.Sorted(maps.Keys(s.Groups)) {
		g := s.Groups[name]
		rows = append(rows, []string{
			name, fmt.Sprint(g.Scale.Min), fmt.Sprint(g.Scale.Max), fmt.Sprint(g.Awake), fmt.Sprint(g.Total),
			g.Scale.OnIdle, regionMap(g.Scale.RegionMin), regionMap(g.Scale.RegionMax),
		})
	}
	fmt.Fprintln(w)
	table(w, rows)
}

func regionMap(m map[volant.Region]int) string {
	if len(m) == 0 {
		return "-"
	}
	var names []string
	for r, n := range m {
		names = append(names, fmt.Sprintf("%s=%d", r, n))
	}
	sort.Strings(names)
	return fmt.Sprint(names)
}
