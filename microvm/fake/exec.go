package fake

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/volant-edge/volant/guest"
)

// Exec is the default for Config.Exec: the commands true, false, echo, name, cat, count and sleep. Count adds
// one to the value "count" in the guest's RAM and prints it.
func Exec(ctx context.Context, g *Guest, x guest.Exec) (guest.Exit, error) {
	if len(x.Args) == 0 {
		return guest.Exit{}, guest.Errorf(guest.KindInvalid, "no command")
	}
	var err error
	switch x.Args[0] {
	case "true":
	case "false":
		return guest.Exit{Code: 1}, nil
	case "echo":
		_, err = fmt.Fprintln(x.Stdout, strings.Join(x.Args[1:], " "))
	case "name":
		_, err = fmt.Fprintln(x.Stdout, g.VM())
	case "cat":
		_, err = io.Copy(x.Stdout, x.Stdin)
	case "count":
		_, err = fmt.Fprintln(x.Stdout, g.Add("count", 1))
	case "sleep":
		var d time.Duration
		if len(x.Args) > 1 {
			d, err = time.ParseDuration(x.Args[1])
		}
		if err == nil {
			err = sleep(ctx, d)
		}
	default:
		_, err = fmt.Fprintf(x.Stderr, "%s: not found\n", x.Args[0])
		return guest.Exit{Code: 127}, err
	}
	return guest.Exit{}, err
}
