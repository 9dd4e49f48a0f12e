/* Arguments are params; what goes on and the result are lines of JSON on standard output. */
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **arguments)
{
    if (count != 3)
        return 2; /* any exit code but 0 makes the trial FAIL */
    double x = atof(arguments[1]), y = atof(arguments[2]);
    double value = (x - 1) * (x - 1) + (y + 2) * (y + 2);
    for (int step = 1; step <= 3; step++) {
        printf("{\"step\": %d, \"value\": %.9g}\n", step, value + 1.0 / step);
        fflush(stdout); /* else a pruner hears of it at the end only */
    }
    printf("{\"value\": %.9g}\n", value);
    return 0;
}
