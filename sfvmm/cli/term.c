/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation: enter() saves the terminal's settings once and changes them; leave() puts them back. The
 * handlers of signals that end the process leave first and then let the signal do its default, so that the exit status
 * tells the truth. ^Z in a live table leaves, stops, and enters again at SIGCONT. Only async-signal-safe calls are made
 * there: tcsetattr, write, signal, sigaction, raise.
 */
#include "sfvmm/cli/term.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define COLUMNS_DEFAULT   80u
#define ROWS_DEFAULT      24u

static const char screen_on[] = "\033[?1049h\033[?25l";
static const char screen_off[] = "\033[?25h\033[?1049l";

static struct termios saved, changed;
static SfTermMode term_mode;
static volatile sig_atomic_t entered;

static void write_code(const char *code, size_t length)
{
    ssize_t n = write(STDOUT_FILENO, code, length);      /* nobody is left to tell if it fails */
    (void)n;
}

static void switch_on(void)
{
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &changed);
    if (term_mode == SF_TERM_SCREEN) {
        write_code(screen_on, sizeof(screen_on) - 1);
    }
    entered = 1;
}

void sf_term_leave(void)
{
    if (entered) {
        entered = 0;
        if (term_mode == SF_TERM_SCREEN) {
            write_code(screen_off, sizeof(screen_off) - 1);
        }
        tcsetattr(STDIN_FILENO, TCSAFLUSH, &saved);
    }
}

static void on_fatal(int number)
{
    sf_term_leave();
    signal(number, SIG_DFL);
    raise(number);
}

static void on_stop(int number)
{
    int error_number = errno;
    sigset_t set, old;

    sf_term_leave();
    signal(SIGTSTP, SIG_DFL);
    raise(SIGTSTP);                    /* blocked while its handler runs: takes effect when it is let through */
    sigemptyset(&set);
    sigaddset(&set, SIGTSTP);
    sigprocmask(SIG_UNBLOCK, &set, &old);      /* here the process stops, and here it goes on */
    sigprocmask(SIG_SETMASK, &old, NULL);
    signal(SIGTSTP, on_stop);
    switch_on();
    errno = error_number;
}

/* Only to interrupt poll(): the next picture asks for the size. */
static void on_resize(int number)
{
}

static void handle(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    sigaction(number, &action, NULL);
}

gboolean sf_term_enter(SfTermMode mode)
{
    static const int fatal[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGSEGV, SIGBUS, SIGABRT};

    if (!isatty(STDIN_FILENO) || (mode == SF_TERM_SCREEN && !isatty(STDOUT_FILENO)) ||
        tcgetattr(STDIN_FILENO, &saved) != 0) {
        return FALSE;
    }
    term_mode = mode;
    changed = saved;
    if (mode == SF_TERM_RAW) {
        cfmakeraw(&changed);
    } else {
        changed.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        changed.c_cc[VMIN] = 1;
        changed.c_cc[VTIME] = 0;
    }
    atexit(sf_term_leave);
    for (guint i = 0; i < G_N_ELEMENTS(fatal); i++) {
        handle(fatal[i], on_fatal);
    }
    handle(SIGTSTP, on_stop);
    handle(SIGWINCH, on_resize);
    switch_on();
    return TRUE;
}

void sf_term_size(guint *columns, guint *rows)
{
    struct winsize size = {0};

    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    *columns = size.ws_col ? size.ws_col : COLUMNS_DEFAULT;
    *rows = size.ws_row ? size.ws_row : ROWS_DEFAULT;
}
