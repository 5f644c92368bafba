package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

func newSecrets(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "secrets", Short: "Set an app's secrets: variables whose values nobody can read back"}
	s := &secretsVerb{g: g}
	f := cmd.PersistentFlags()
	f.StringVarP(&s.app, "app", "a", "", "the app")
	set := &cobra.Command{
		Use: "set NAME=VALUE...", Short: "Set secrets, and bring them into the app's machines", Args: cobra.MinimumNArgs(1),
		Example: "  volant secrets set --app web DATABASE_URL=postgres://…\n  volant secrets set --app web TOKEN=- < token.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := assignments(args, cmd.InOrStdin())
			if err != nil {
				return err
			}
			return s.change(cmd, values)
		},
	}
	unset := &cobra.Command{
		Use: "unset NAME...", Short: "Unset secrets", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			values := map[string]*string{}
			for _, name := range args {
				values[name] = nil
			}
			return s.change(cmd, values)
		},
	}
	load := &cobra.Command{
		Use: "import", Short: "Set secrets from lines NAME=VALUE on standard input", Args: cobra.NoArgs,
		Example: "  volant secrets import --app web < .env",
		RunE: func(cmd *cobra.Command, _ []string) error {
			values, err := readAssignments(cmd.InOrStdin())
			if err != nil {
				return err
			}
			return s.change(cmd, values)
		},
	}
	for _, c := range []*cobra.Command{set, unset, load} {
		c.Flags().BoolVar(&s.stage, "stage", false, "keep them for the next deploy; machines stay as they are")
		c.Flags().BoolVar(&s.detach, "detach", false, "do not wait for the outcome")
	}
	cmd.AddCommand(set, s.list(), unset, load)
	return cmd
}

// secretsVerb are the flags of `volant secrets`.
type secretsVerb struct {
	g             *globals
	app           string
	stage, detach bool
}

func (s *secretsVerb) list() *cobra.Command {
	return &cobra.Command{
		Use: "list [APP]", Short: "List an app's secrets, without their values", Args: cobra.MaximumNArgs(1), Aliases: []string{"ls"},
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appArg(s.app, args)
			if err != nil {
				return err
			}
			c, err := s.g.client()
			if err != nil {
				return err
			}
			all, err := c.Secrets(cmd.Context(), app)
			if err != nil {
				return err
			}
			return s.g.print(cmd, all, func(w io.Writer) {
				rows := [][]string{{"NAME", "DIGEST", "SET"}}
				for _, sc := range all.Secrets {
					rows = append(rows, []string{sc.Name, sc.Digest, ago(sc.UpdatedAt)})
				}
				table(w, rows)
			})
		},
	}
}

// change sets secrets, and unless they are staged makes a release of the app as it is, so that its machines are
// replaced one after another and no connection is dropped.
func (s *secretsVerb) change(cmd *cobra.Command, values map[string]*string) error {
	app, err := appArg(s.app, nil)
	if err != nil {
		return err
	}
	c, err := s.g.client()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	before, err := c.Secrets(ctx, app)
	if err != nil {
		return err
	}
	after, err := c.SetSecrets(ctx, app, values)
	if err != nil {
		return err
	}
	d := &deployment{call: &call{Client: c, globals: s.g, ctx: ctx, cmd: cmd}, out: cleaner{cmd.OutOrStdout()}, app: app}
	out := struct {
		api.AppSecrets
		Release *api.Release `json:"release,omitempty"`
	}{AppSecrets: after}
	switch {
	case before.Version == after.Version:
		d.sayf("Nothing changed: version %d of the secrets of app %s holds already.", after.Version, app)
	case s.stage:
		d.sayf("Version %d of the secrets of app %s is kept for the next deploy.", after.Version, app)
	default:
		d.sayf("Version %d of the secrets of app %s is set.", after.Version, app)
		if out.Release, err = s.redeploy(d); err != nil {
			return err
		}
	}
	return s.g.print(cmd, out, func(io.Writer) {})
}

// redeploy makes a release of what the app is now, if it ever was deployed.
func (s *secretsVerb) redeploy(d *deployment) (*api.Release, error) {
	releases, err := d.Releases(d.ctx, d.app)
	if err != nil || len(releases) == 0 {
		return nil, err
	}
	a, err := d.App(d.ctx, d.app)
	if err != nil {
		return nil, err
	}
	from := a.Release // what serves; before the first has come so far, the newest
	if from == 0 {
		from = releases[0].Version
	}
	r, err := d.CreateRelease(d.ctx, d.app, api.CreateRelease{FromRelease: from})
	if err != nil {
		return nil, err
	}
	d.sayf("Release %d brings them into the machines: %s.", r.Version, r.Status)
	if !s.detach {
		r, err = d.follow(r)
	}
	return &r, err
}

// maxInput bounds what is read of standard input.
const maxInput = 1 << 20

// assignments reads NAME=VALUE; a value of - is standard input, without its last line feed.
func assignments(args []string, stdin io.Reader) (map[string]*string, error) {
	out := map[string]*string{}
	read := false
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		switch {
		case !ok || name == "":
			return nil, volant.Invalidf("%q is no NAME=VALUE", a).WithRemedy("write it as `volant secrets set NAME=VALUE`, or NAME=- to read the value from standard input")
		case out[name] != nil:
			return nil, volant.Invalidf("secret %s is set twice", name).WithRemedy("name it once")
		case value == "-" && read:
			return nil, volant.Invalidf("two secrets read standard input").WithRemedy("set them one after another")
		case value == "-":
			b, err := io.ReadAll(io.LimitReader(stdin, maxInput))
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}
			value, read = strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), true
		}
		out[name] = &value
	}
	return out, nil
}

// readAssignments reads lines of NAME=VALUE: empty ones and comments are left out, "export " before a name is,
// and a pair of quotes around a value. A value between triple double quotes may have several lines.
func readAssignments(r io.Reader) (map[string]*string, error) {
	out := map[string]*string{}
	sc := bufio.NewScanner(io.LimitReader(r, maxInput))
	sc.Buffer(nil, maxInput)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || name == "" {
			return nil, volant.Invalidf("line %d of standard input is no NAME=VALUE", n)
		}
		if rest, ok := strings.CutPrefix(value, `"""`); ok {
			lines := []string{rest}
			first := n
			for !strings.HasSuffix(lines[len(lines)-1], `"""`) {
				if !sc.Scan() {
					return nil, volant.Invalidf(`line %d of standard input begins a value with """ which does not end`, first)
				}
				n++
				lines = append(lines, sc.Text())
			}
			value = strings.TrimSuffix(strings.Join(lines, "\n"), `"""`)
		} else if q := value[:min(1, len(value))]; len(value) >= 2 && (q == `"` || q == "'") && strings.HasSuffix(value, q) {
			value = value[1 : len(value)-1]
		}
		out[name] = &value
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	if len(out) == 0 {
		return nil, volant.Invalidf("standard input has no line NAME=VALUE")
	}
	return out, nil
}
